"""Other libraries: how they store what we have, and a harness that has each judged, `minipeft.interop.LIBRARY.harness`."""
