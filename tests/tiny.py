from minipeft.conformance.tiny import example as batch  # noqa: F401
from minipeft.conformance.tiny import model  # noqa: F401
