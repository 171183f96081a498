"""A program under test that is broken or hostile in the way that a file says for each case: `python hostile.py FILE`.

It uses the standard library alone, and starts fast. To all other cases it gives what is wanted.
"""

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

plan = {}


def say(answer):
    print(json.dumps(answer), flush=True)


def raw(data):
    while data:
        data = data[os.write(1, data) :]


def safetensors(tensors):
    """{name: (dtype, shape, bytes)} as a file."""
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = dict(dtype=dtype, shape=shape, data_offsets=[at, at + len(data)])
        at += len(data)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values())


def left_behind(env):
    """A process of another session, whose parent has ended."""
    sleeper = "import os, time; open(os.sys.argv[1], 'a').write(f'{os.getpid()}\\n'); time.sleep(600)"
    starter = "import subprocess, sys; subprocess.Popen(sys.argv[1:], env={}, start_new_session=True)"
    words = [sys.executable, "-S", "-c", sleeper, plan["pids"]]
    before = Path(plan["pids"]).stat().st_size
    subprocess.run([sys.executable, "-S", "-c", starter, *words]) if env else subprocess.Popen(words, process_group=0)
    while Path(plan["pids"]).stat().st_size == before:
        time.sleep(0.01)


def case(asked):
    """Do what the plan says; whether the right answer is still to be given."""
    mode, out, folder = plan["modes"].get(asked["id"], "honest"), Path(asked["out"]), Path(asked["folder"])
    done = dict(id=asked["id"], status="done")
    files = dict(
        empty={"y": ("F64", [0], b"")}, half={"y": ("F16", [3, 4, 10], bytes(240))}, brain={"y": ("BF16", [3, 4, 10], bytes(240))},
        huge={"y": ("U64", [1], b"\xff" * 8)}, number={"y": ("F64", [], bytes(8))}, folded={"y": ("F64", [0, 2**62], b"")},
        axes={"y": ("F64", [1] * 99, bytes(8))}, newline={"y\n\x1b[31m": ("F64", [1], bytes(8))},
    )  # fmt: skip
    if mode == "crash":
        os._exit(7)
    elif mode == "hang":
        time.sleep(600)
    elif mode == "closed":
        os.close(1)
        time.sleep(600)
    elif mode == "pipe":
        os.mkfifo(out)
    elif mode == "folder":
        out.mkdir()
    elif mode == "link":
        out.symlink_to("/dev/zero")
    elif mode == "traces":
        os.mkfifo(asked["trace"])
        return True
    elif mode == "loop":
        out.symlink_to(out)
    elif mode == "sparse":
        out.touch()
        os.truncate(out, 1 << 40)
    elif mode == "header":
        out.write_bytes(struct.pack("<Q", 1 << 24) + b" " * (1 << 24 - 8))
    elif mode in files:
        out.write_bytes(safetensors(files[mode]))
    elif mode == "nothing":
        pass
    elif mode == "stray":
        say("debug")
        return True
    elif mode == "echo":
        shutil.copy(folder / "in.safetensors", out)
    elif mode == "later":
        done = dict(id=asked["id"], status="unsupported", reason="later")
    elif mode == "refuses":
        done = dict(id=asked["id"], status="rejected", reason="I do not like it")
    elif mode == "twice":
        shutil.copy(folder / "want.safetensors", out)
        say(done)
    elif mode == "no id":
        del done["id"]
    elif mode == "other id":
        done["id"] = "another.forward.usual"
    elif mode == "deep":
        raw(b"[" * 100_000 + b"\n")
    elif mode == "nan":
        raw(f'{{"id": "{asked["id"]}", "status": NaN}}\n'.encode())
    elif mode == "digits":
        raw(f'{{"id": "{asked["id"]}", "status": {"1" * 9999}}}\n'.encode())
    elif mode == "endless":
        while True:
            raw(b"x" * 65536)
    elif mode == "chatter":
        while True:
            raw(b'{"status": "done"}\n' * 4096)
    elif mode == "noise":
        sys.stderr.write("\x1b[2J" * 10_000_000)
        return True
    elif mode == "vandal":
        shutil.rmtree(folder.parents[5])
    elif mode == "squatter":
        scratch = folder.parents[4]
        shutil.rmtree(scratch)
        scratch.write_text("mine")
    elif mode == "litter":
        (folder / "in.safetensors").write_bytes(b"")
        return True
    elif mode == "half a character":
        done = dict(id=asked["id"], status="error", reason="\ud800\x00\x1b[2J\u202e | <script> [bold] `a`")
    elif mode == "status":
        done["status"] = ["done"]
    elif mode == "reason":
        done |= dict(status="unsupported", reason={"a": 1})
    elif mode == "link to code":
        done |= dict(status="unsupported", reason="r" * 100_000, url="javascript:alert(1)")
    elif mode == "daemons":
        left_behind(False)
        left_behind(True)
        os._exit(8)
    else:
        return True
    say(done)
    return False


if __name__ == "__main__":
    plan |= json.loads(Path(sys.argv[1]).read_text())
    if plan.get("once"):
        Path(sys.argv[0]).unlink()
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] == "start" and plan.get("dies"):
            sys.exit("I cannot")
        if asked["do"] == "start":
            time.sleep(plan.get("late", 0))
            say(dict(name="hostile", version="1", dtypes=["float64"], methods=plan["methods"], readings={}))
        elif case(asked):
            shutil.copy(Path(asked["folder"]) / "want.safetensors", asked["out"])
            say(dict(id=asked["id"], status="done"))
