"""Mount the file systems of one sandbox below ``protocol.ROOT`` (mount_namespaces(7))."""

from __future__ import annotations

import os
import stat

from ...sandbox_image import protocol
from ...sandbox_image.environment import MASKED_PROC_FILES, MASKED_PROC_FOLDERS
from . import rootfs
from . import syscalls as sc
from .setup_errors import setup_step


def make_devices() -> None:
    """Give the shim device nodes of its own, if it may make any (mknod(2))."""
    # Sandboxes that share a node can signal each other through flock(2) locks on it. The sandbox copies the
    # shim's mounts. Without CAP_MKNOD it shares the nodes of the host.
    numbers = {name: os.stat(f"/dev/{name}").st_rdev for name in rootfs.DEVICES}
    sc.unshare(sc.CLONE_NEWNS)
    sc.mount("tmpfs", "/dev", "tmpfs", sc.MS_NOSUID | sc.MS_NOEXEC, "mode=0755")
    try:
        for name, number in numbers.items():
            os.mknod(f"/dev/{name}", stat.S_IFCHR, number)
            os.chmod(f"/dev/{name}", 0o666)  # noqa: S103 - as every /dev has them
    except OSError as error:
        sc.umount("/dev")
        if not isinstance(error, PermissionError):
            raise


def mount_root(folders: tuple[str, ...], *, has_cgroup: bool) -> None:
    """Mount read-only folders, devices and scratch space."""
    # Else the zygote and the other sandboxes would get these mounts too (shared subtrees).
    sc.mount("none", "/", None, sc.MS_REC | sc.MS_PRIVATE)
    _mount_folder(rootfs.TEMPLATE, protocol.ROOT)
    for path in folders:
        _mount_folder(rootfs.LOWER + path, protocol.ROOT + path)
    os.chdir(protocol.ROOT)
    packages = f".{os.path.dirname(os.__file__)}/site-packages"
    if os.path.isdir(packages):
        # The host's own packages stay hidden: their records name paths of the host.
        _hide_folder(packages)
    for name in rootfs.DEVICES:
        # Both give zeros, but /dev/zero can be mapped, as shared memory that only a control group counts.
        source = "full" if name == "zero" and not has_cgroup else name
        sc.mount(f"/dev/{source}", f"dev/{name}", None, sc.MS_BIND)
    # One tmpfs at three places, so that its size bounds all that can be written. `mount_proc` covers this
    # mount.
    sc.mount("tmpfs", "proc", "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, "mode=0700")
    for name, target in (("work", "work"), ("tmp", "tmp"), ("shm", "dev/shm")):
        os.mkdir(f"proc/{name}", 0o700)
        sc.mount(f"proc/{name}", target, None, sc.MS_BIND)


def _mount_folder(source: str, target: str) -> None:
    # An overlay has the same pages as the host's folder, but inodes of its own. So a lock on a library is not
    # seen elsewhere, a socket in the folder cannot be connected to, and mountinfo names no path of the host.
    try:
        flags = sc.MS_RDONLY | sc.MS_NOSUID | sc.MS_NODEV
        sc.mount("overlay", target, "overlay", flags, f"lowerdir={source}:{rootfs.EMPTY}")
    except OSError:
        # The kernel or the file system refuses overlays. `doctor` reports which kind of mount it is.
        sc.mount(source, target, None, sc.MS_BIND | sc.MS_REC)
        sc.protect(target, sc.ATTR_RDONLY | sc.ATTR_NOSUID | sc.ATTR_NODEV)


def mount_proc() -> None:
    """Mount and mask /proc of the new PID namespace."""
    # hidepid=2: processes that the guest may not inspect, such as init, do not appear (proc(5)).
    flags = sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC
    sc.mount("proc", "proc", "proc", flags, "hidepid=2")
    for name in MASKED_PROC_FILES:
        if os.path.exists(f"proc/{name}"):
            sc.mount("/dev/null", f"proc/{name}", None, sc.MS_BIND)
    for name in MASKED_PROC_FOLDERS:
        if os.path.exists(f"proc/{name}"):
            _hide_folder(f"proc/{name}")


def _hide_folder(path: str) -> None:
    # A new file system, and not a bind of one empty folder: other sandboxes would see a flock(2) on that.
    sc.mount("tmpfs", path, "tmpfs", sc.MS_RDONLY | sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC)


def enter() -> None:
    """Make the mounted tree the root (pivot_root(2))."""
    # No path leads to the old root any more.
    sc.pivot_root_here()


def resize_scratch(limits: protocol.ResourceLimits) -> None:
    """Set the size of the scratch space (tmpfs(5)).

    Raises:
        SetupError: the kernel refuses.
    """
    with setup_step("mounts"):
        size = f"size={limits.scratch_bytes},nr_inodes={limits.scratch_inodes}"
        sc.mount("tmpfs", protocol.WORK, None, sc.MS_REMOUNT | sc.MS_NOSUID | sc.MS_NODEV, size)
