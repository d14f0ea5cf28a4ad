"""The process in which one program of a stranger runs. `a3jax.execute.sandbox` starts it; it imports nothing of ours.

On standard input it is told the program, the limits, whether to be confined, and a word. On standard output it answers with
the word and what became of the program, or with nothing, if that ended the process: the program is not told the word.

Confined, it first leaves behind what the kernel lets a process leave: in namespaces of its own there is no network and no
process but itself, and its root is an empty file system in memory, with Python and the system's libraries to read. That
takes two more processes, which wait: the one that was started, and the first one of the new process namespace, with which
all others in it die. Then, confined or not, come an unprivileged user where root started it, and the limits.
"""

import ctypes
import json
import os
import random
import resource
import signal
import sys
from typing import Any

PASSED, REFUSED = "passed", "refused: "
"""A program that came to its end, and how an answer begins where none was run."""
SIGNALLED = 128
"""Above it a process that waits for another ends with the number of the signal that ended that."""
NOBODY = 65534
"""The user and the group that have no rights, on every Linux."""
PLACES = ("/bin", "/lib", "/lib32", "/lib64", "/usr", "/nix/store", "/gnu/store", sys.base_prefix, sys.base_exec_prefix)
"""Where Python and the libraries that it needs may lie."""
ROOM = "/home"

_NEW_USER, _NEW_MOUNTS, _NEW_PROCESSES, _NEW_NETWORK = 0x10000000, 0x00020000, 0x20000000, 0x40000000
_NEW_NAMES, _NEW_MESSAGES = 0x04000000, 0x08000000
_NO_SETUID, _NO_DEVICES, _BIND, _RECURSIVE, _PRIVATE, _DETACHED = 2, 4, 4096, 16384, 1 << 18, 2
_SET_MOUNT, _HERE, _ALL_BELOW, _READ_ONLY = 442, -100, 0x8000, 1
_DIE_WITH_PARENT, _NO_NEW_RIGHTS = 1, 38
_RIGHTS_VERSION = 0x20080522


def main() -> None:
    """Answer one request, and leave without any of what Python does at its end."""
    _die_with_parent()
    asked = json.load(sys.stdin.buffer)
    word, answer = asked["word"], os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nothing, descriptor)
    write, leave = os.write, os._exit  # the program may put others in their place
    try:
        if asked["confined"]:
            namespaces = _leave_the_machine(asked["file_bytes"])
            _give_up_rights(namespaces)
        else:
            _give_up_rights(None)
        _limit(asked)
    except (OSError, ValueError, AttributeError) as error:
        write(answer, f"{word} {REFUSED}{error}".encode())
        leave(0)
    write(answer, f"{word} {_outcome(asked['program'])}".encode("ascii", "replace"))
    leave(0)


def _outcome(program: str) -> str:
    """`PASSED`, or the name of what the program raised. Chance is the same in every run."""
    random.seed(0)
    try:
        exec(compile(program, "program", "exec"), {})
    except BaseException as error:
        return type(error).__name__[:100]
    return PASSED


def _leave_the_machine(room_bytes: int) -> int:
    """Go on in a process of a namespace of every kind, in `ROOM`. Returns the folder of the limits on namespaces.

    Raises `OSError` where the kernel does not allow it.
    """
    folder, user, group, is_root = os.getcwd(), os.geteuid(), os.getegid(), os.geteuid() == 0
    namespaces = os.open("/proc/sys/user", os.O_RDONLY)
    kinds = _NEW_MOUNTS | _NEW_PROCESSES | _NEW_NETWORK | _NEW_NAMES | _NEW_MESSAGES
    _call("unshare", kinds | (0 if is_root else _NEW_USER))
    if not is_root:  # rights over the new namespaces come with a namespace of users, in which this one is all there is
        for name, content in ("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1"):
            _write(f"/proc/self/{name}", content)
    _go_on_in_a_child()
    _furnish(folder, room_bytes)
    _go_on_in_a_child()
    os.setsid()
    return namespaces


def _go_on_in_a_child() -> None:
    """Return in a child, which dies with this process; this process waits for it, and ends as it does."""
    child = os.fork()
    if child == 0:
        _die_with_parent()
        return
    os.closerange(0, 64)  # so that the end of the child is the end of its answer
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os._exit(status if status >= 0 else SIGNALLED - status)


def _die_with_parent() -> None:
    _call("prctl", _DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)


def _furnish(folder: str, room_bytes: int) -> None:
    """Make a file system in memory at `folder`, with `PLACES` to read and `ROOM` to write, the only one there is."""
    _mount(None, "/", None, _RECURSIVE | _PRIVATE, None)  # what is mounted from here on, nobody else sees
    options = f"size={room_bytes},nr_inodes=1024,mode=755"
    _mount("tmpfs", folder, "tmpfs", _NO_SETUID | _NO_DEVICES, options)
    there: list[str] = []
    for place in PLACES:
        if any(f"{place}/".startswith(f"{one}/") for one in there):
            continue
        inside = folder + place
        if os.path.islink(place):
            os.makedirs(os.path.dirname(inside), exist_ok=True)
            os.symlink(os.readlink(place), inside)
        elif os.path.isdir(place):
            os.makedirs(inside)
            _mount(place, inside, None, _BIND | _RECURSIVE, None)
            flags = (ctypes.c_uint64 * 4)(_READ_ONLY | _NO_SETUID | _NO_DEVICES)
            _call("syscall", _SET_MOUNT, _HERE, inside.encode(), _ALL_BELOW, ctypes.byref(flags), ctypes.sizeof(flags))
            there.append(place)
    os.mkdir(folder + ROOM)
    os.chmod(folder + ROOM, 0o777)
    os.chdir(folder)
    _call("pivot_root", b".", b".")  # the old root now lies on the new one
    _call("umount2", b".", _DETACHED)
    os.chdir(ROOM)


def _give_up_rights(namespaces: int | None) -> None:
    """Become nobody where root has started this, for good; inside of `namespaces` make any more of them impossible."""
    if os.geteuid() == 0:
        if namespaces is None:
            os.chown(".", NOBODY, NOBODY)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        _die_with_parent()  # who becomes another forgets it
    if namespaces is not None:  # a namespace of users would give rights over others, and so memory without limit
        _call("unshare", _NEW_USER)
        _write("max_user_namespaces", "0", namespaces)
        os.close(namespaces)
    _call("prctl", _NO_NEW_RIGHTS, 1, 0, 0, 0)
    _call("capset", ctypes.byref((ctypes.c_uint32 * 2)(_RIGHTS_VERSION)), ctypes.byref((ctypes.c_uint32 * 6)()))


def _limit(asked: dict[str, Any]) -> None:
    """No other process or thread, and so much of everything else; the environment is where we are."""
    limits = {
        resource.RLIMIT_CPU: asked["cpu_seconds"],
        resource.RLIMIT_AS: asked["memory_bytes"],
        resource.RLIMIT_FSIZE: asked["file_bytes"],
        resource.RLIMIT_NOFILE: asked["open_files"],
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        # Who lives on after the signal of a limit of time is ended a second later.
        resource.setrlimit(kind, (most, most + 1 if kind == resource.RLIMIT_CPU else most))
    os.environ.clear()
    os.environ["HOME"] = os.getcwd()


def _write(path: str, content: str, folder: int | None = None) -> None:
    descriptor = os.open(path, os.O_WRONLY, dir_fd=folder)
    os.write(descriptor, content.encode())
    os.close(descriptor)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None) -> None:
    words = [one if one is None else one.encode() for one in (source, target, kind, options)]
    _call("mount", *words[:3], ctypes.c_ulong(flags), words[3])


def _call(name: str, *values: Any) -> None:
    """A function of the C library. Raises `OSError` where it fails."""
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*values) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


if __name__ == "__main__":
    main()
