"""Third-party packages in sandboxes: numpy works isolated, and the host's folder stays unchanged."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Generator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path

import pytest
from process_support import COMMAND, zygotes
from support import REPOSITORY, SMALL, Open, scan_memory_for

from supdist.engine import Outcome, Sandbox, SandboxConfig, SandboxRuntime, TaskError, arun, open_sandbox
from supdist.engine.sandbox.zygote import ZygoteClient
from supdist.handlers import ScriptedHandler

pytestmark = pytest.mark.anyio


@contextmanager
def readable_by_all() -> Generator[None]:
    """For what is written meanwhile, whoever started the tests."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture(scope="session")
def numpy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder that ``pip install --target`` would make of the numpy that is installed here."""
    folder = tmp_path_factory.mktemp("home") / f"packages-{secrets.token_hex(16)}"
    copy_installed(folder, "numpy")
    assert list(folder.glob("numpy.libs/*openblas*")), "numpy came as a wheel, with a BLAS of its own"
    return str(folder)


@pytest.fixture(scope="session")
def science(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same of pandas, matplotlib and all that they need, Pillow among it."""
    folder = tmp_path_factory.mktemp("home") / "packages"
    copy_installed(folder, "pandas", "matplotlib")
    return str(folder)


def copy_installed(folder: Path, *names: str) -> None:
    """Copy these installed distributions and their requirements, as pip would install them."""
    wanted, known = list(names), set[str]()
    with readable_by_all():
        while wanted:
            known.add(name := wanted.pop())
            for file in importlib.metadata.files(name) or []:
                if ".." not in file.parts and "tests" not in file.parts:
                    target = folder / file
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(str(file.locate()), target)
            for requirement in importlib.metadata.requires(name) or []:
                required = re.split(r"[^\w.-]", requirement)[0]
                if "extra ==" not in requirement and required not in known:
                    wanted.append(required)


SCIENCE = {"timeout": 60.0, "memory": "1GiB", "scratch": "64MiB"}


async def test_a_data_frame_is_shown_as_text_and_as_html(small: Open, science: str) -> None:
    code = "import pandas as pd\ndf = pd.DataFrame({'name': ['a', 'b'], 'n': [1, 2]})\ndf"
    async with small(packages=science, **SCIENCE) as sandbox:
        result = await sandbox.execute(code)
        total = await sandbox.execute("df.groupby('name').n.sum().sum()")
        big = await sandbox.execute("pd.DataFrame({'n': range(1_000_000)})")
        assert sandbox.isolation.missing() == []
    (frame,) = result.display
    assert frame.data["text/plain"] == "  name  n\n0    a  1\n1    b  2"
    assert "<td>b</td>" in str(frame.data["text/html"])
    assert total.display[0].as_text() == "np.int64(3)"
    assert len(big.display[0].as_text()) < 1000
    assert big.display[0].as_text().endswith("[1000000 rows x 1 columns]")


async def test_figures_and_images_are_shown_as_png(small: Open, science: str) -> None:
    plot = "import matplotlib.pyplot as plt\nlines = plt.plot([1, 2, 3])\nplt.show()"
    look = "\nimport os\nprint(plt.get_backend().lower(), os.listdir('/work'))"
    in_child = (
        f"import subprocess, sys\n"
        f"done = subprocess.run([sys.executable, '-W', 'error', '-c', {plot!r}], check=True)"
    )
    async with small(packages=science, **SCIENCE) as sandbox:
        plotted = await sandbox.execute(plot + look)
        again = await sandbox.execute("figure, axes = plt.subplots()\nother = plt.figure()\nfigure")
        closed = await sandbox.execute("plt.get_fignums()")
        image = await sandbox.execute("from PIL import Image\nImage.new('RGBA', (3, 2), 'red')")
        child = await sandbox.execute(in_child)
    assert (plotted.outcome, plotted.stdout, plotted.stderr) == (Outcome.OK, "agg []\n", "")
    assert [shown.data["text/plain"] for shown in (*plotted.display, *again.display)] == [
        "<Figure size 640x480 with 1 Axes>",
        "<Figure size 640x480 with 1 Axes>",
        "<Figure size 640x480 with 0 Axes>",
    ]
    for shown in (*plotted.display, *again.display, *image.display):
        assert shown.data["image/png"][:8] == b"\x89PNG\r\n\x1a\n"
        assert shown.data.keys() == {"text/plain", "image/png"}
    assert closed.display[0].as_text() == "[]"
    assert (child.outcome, child.stderr) == (Outcome.OK, "")


async def test_a_figure_that_is_too_large_to_draw_is_said_to_be(small: Open, science: str) -> None:
    """Drawing it is the cell's work, bounded by the cell's memory and time."""
    async with small(packages=science, **SCIENCE) as sandbox:
        await sandbox.execute("import matplotlib.pyplot as plt\nkept = 1")
        result = await sandbox.execute("figure = plt.figure(dpi=100_000)")
        after = await sandbox.execute("print(kept, plt.get_fignums())")
    (shown,) = result.display
    assert (result.outcome, shown.data.keys()) == (Outcome.OK, {"text/plain"})
    assert "[drawing the figure failed: " in shown.as_text()
    assert after.stdout == "1 []\n"


def folder_with(folder: Path, **modules: str) -> str:
    """A folder of small modules."""
    with readable_by_all():
        folder.mkdir(parents=True, exist_ok=True)
        for name, source in modules.items():
            (folder / f"{name}.py").write_text(source)
    return str(folder)


NUMPY = {
    "linear algebra": """
        a = np.random.default_rng(0).normal(size=(300, 300))
        u, s, vt = np.linalg.svd(a)
        print(np.allclose(u * s @ vt, a), np.allclose(np.linalg.solve(a, a @ np.ones(300)), 1))
    """,
    "random": """
        draws = np.random.default_rng().normal(size=100_000)
        seeds = {np.random.default_rng().integers(1 << 60) for _ in range(9)}
        print(abs(draws.mean()) < 0.05, len(seeds) == 9)
    """,
    "fft": """
        x = np.sin(2 * np.pi * 50 * np.arange(1000) / 1000)
        print(np.abs(np.fft.rfft(x)).argmax() == 50, np.allclose(np.fft.ifft(np.fft.fft(x)), x))
    """,
    "mapped files": """
        np.save("/work/a.npy", np.arange(1_000_000))
        m = np.load("/work/a.npy", mmap_mode="r+")
        m[3] = -1
        m.flush()
        print(np.load("/work/a.npy")[3] == -1, type(m) is np.memmap)
    """,
    "pickles": """
        import pickle
        a = np.arange(10_000.0).reshape(100, 100)
        buffers = []
        data = pickle.dumps(a, protocol=5, buffer_callback=buffers.append)
        print((pickle.loads(data, buffers=buffers) == a).all(), (pickle.loads(pickle.dumps(a)) == a).all())
    """,
    "processes": """
        import multiprocessing
        def norm(seed):
            draws = np.random.default_rng(seed).normal(size=(200, 200))
            return float(np.linalg.norm(draws @ np.ones((200, 200))))
        with multiprocessing.Pool(4) as pool:
            norms = pool.map(norm, range(16))
        print(np.allclose(norms, [norm(seed) for seed in range(16)]), len(set(norms)) == 16)
    """,
    "threads": """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(4) as pool:
            sums = list(pool.map(lambda n: (np.ones((n, n)) @ np.ones((n, n))).sum(), range(100, 116)))
        print(sums == [n**3 for n in range(100, 116)], True)
    """,
}


@pytest.mark.parametrize("part", NUMPY)
async def test_numpy_works_behind_all_walls(small: Open, numpy: str, part: str) -> None:
    code = "import numpy as np\n" + "\n".join(line[8:] for line in NUMPY[part].splitlines())
    async with small(packages=numpy, pids=16, timeout=30.0) as sandbox:
        result = await sandbox.execute(code)
        assert sandbox.isolation.missing() == []
    assert (result.outcome, result.stdout, result.stderr) == (Outcome.OK, "True True\n", ""), result


@pytest.mark.parametrize(
    ("cpus", "pids", "threads"), [(1.0, 64, 1), (1.5, 64, 2), (0.5, 64, 1), (64.0, 16, 4), (8.0, 4, 1)]
)
async def test_blas_takes_the_processors_and_a_quarter_of_the_processes_at_most(
    small: Open, numpy: str, cpus: float, pids: int, threads: int
) -> None:
    code = """
import os
import numpy as np
a = np.ones((600, 600))
print((a @ a).sum(), os.environ["OPENBLAS_NUM_THREADS"], os.environ["OMP_NUM_THREADS"])
print(len(os.listdir("/proc/self/task")))
"""
    async with small(packages=numpy, cpus=cpus, pids=pids, timeout=30.0) as sandbox:
        result = await sandbox.execute(code)
    total, openblas, openmp, running = result.stdout.split()
    assert (float(total), openblas, openmp) == (600.0**3, str(threads), str(threads)), result
    assert int(running) <= threads


async def test_a_package_comes_after_the_standard_library_and_is_there_for_child_interpreters(
    small: Open, tmp_path: Path
) -> None:
    folder = folder_with(
        tmp_path / "packages", colorsys="raise RuntimeError('not this one')", greeting="VALUE = 'hello'"
    )
    code = """
import colorsys, greeting, subprocess, sys
print(greeting.VALUE, greeting.__file__, sys.path[-1])
program = [sys.executable, "-c", "import greeting; print(greeting.VALUE)"]
print(subprocess.run(program, capture_output=True, text=True).stdout)
"""
    async with small(packages=folder) as sandbox:
        result = await sandbox.execute(code)
    assert result.stdout == "hello /opt/packages/greeting.py /opt/packages\nhello\n\n", result


async def test_a_supervisor_is_told_what_it_can_import(tmp_path: Path) -> None:
    folder = Path(folder_with(tmp_path / "packages", greeting="VALUE = 'hello'", _private=""))
    (folder / "drawing").mkdir()
    (folder / "greeting-1.0.dist-info").mkdir()
    (folder / "compiled.cpython-311-x86_64-linux-gnu.so").touch()
    script = ["```repl\nimport greeting; FINAL(history(0, 1)[0]['content'])\n```"]
    result = await arun(
        query="q", context="c", supervisor=ScriptedHandler(script), worker=None,
        sandbox=SandboxConfig(packages=str(folder)),
    )  # fmt: skip
    assert "The standard library and compiled, drawing, greeting can be imported" in (result.answer or "")


async def test_the_folder_is_read_only_and_gives_no_rights(small: Open, tmp_path: Path) -> None:
    folder = Path(folder_with(tmp_path / "packages", greeting="VALUE = 1"))
    shutil.copyfile("/usr/bin/id", folder / "id")
    (folder / "id").chmod(0o6755)
    code = """
import errno, os, subprocess
def attempt(action, *arguments):
    try:
        action(*arguments)
        return "did"
    except OSError as error:
        return errno.errorcode[error.errno]
at = "/opt/packages/greeting.py"
print(*{
    attempt(open, at, "w"), attempt(open, at, "a"), attempt(open, "/opt/packages/new", "x"),
    attempt(os.unlink, at),
    attempt(os.rename, at, at + "c"), attempt(os.mkdir, "/opt/packages/d"), attempt(os.chmod, at, 0o777),
    attempt(os.utime, at), attempt(os.truncate, at, 0), attempt(os.link, at, "/opt/packages/l"),
    attempt(os.symlink, at, "/opt/packages/s"), attempt(os.mkfifo, "/opt/packages/p"),
})
flags = os.statvfs("/opt/packages").f_flag
print([bool(flags & flag) for flag in (os.ST_RDONLY, os.ST_NOSUID, os.ST_NODEV, os.ST_NOEXEC)])
print(subprocess.run(["/opt/packages/id"], capture_output=True, text=True).stdout)
"""
    before = {path.name: path.lstat() for path in folder.iterdir()}
    async with small(packages=str(folder)) as sandbox:
        result = await sandbox.execute(code)
    refusals, flags, identity = result.stdout.splitlines()[:3]
    assert set(refusals.split()) <= {"EROFS", "EACCES"}, result  # which of the two checks comes first
    assert flags == "[True, True, True, False]"
    assert identity.startswith("uid=65534(sandbox) gid=65534(sandbox)")
    assert "euid" not in identity
    assert "egid" not in identity
    after = {path.name: path.lstat() for path in folder.iterdir()}
    assert {name: (s.st_ino, s.st_size, s.st_mode, s.st_mtime_ns) for name, s in after.items()} == {
        name: (s.st_ino, s.st_size, s.st_mode, s.st_mtime_ns) for name, s in before.items()
    }


LOOK_AROUND = """
import glob, os, sys, sysconfig
for path in glob.glob("/proc/self/*") + glob.glob("/proc/self/task/*/*") + glob.glob("/proc/1/*"):
    try:
        with open(path, errors="replace") as file: print(file.read(1 << 20))
    except (OSError, OverflowError): pass
for path in glob.glob("/proc/self/fd/*") + glob.glob("/proc/self/map_files/*"):
    try: print(os.readlink(path))
    except OSError: pass
files = [getattr(m, "__file__", "") for m in list(sys.modules.values())]
print(sys.path, os.environ, sysconfig.get_paths(), files)
"""


async def test_nothing_inside_names_the_hosts_folder(small: Open, numpy: str) -> None:
    """Not a file of /proc, not a traceback, not the memory, which is forked from the zygote's."""
    token = Path(numpy).name.removeprefix("packages-")
    limits = {"packages": numpy, "memory": "1GiB", "timeout": 30.0}
    async with small(**limits) as sandbox:
        raised = await sandbox.execute("import numpy as np\nnp.linalg.inv(np.zeros((2, 2)))")
        seen = await sandbox.execute(LOOK_AROUND)
        memory = await sandbox.execute(scan_memory_for(token))
    async with small(**limits, context=numpy) as told:
        await told.execute("import numpy")
        control = await told.execute(scan_memory_for(token))
    assert raised.error is not None
    assert "/opt/packages/numpy/linalg" in raised.error.traceback
    assert "/opt/packages" in seen.stdout
    for result in (raised, seen):
        assert token not in repr(result)
        assert str(Path(numpy).parent) not in repr(result)
    assert (memory.stdout, control.stdout) == ("nothing\n", "found\n")


async def test_a_lock_on_a_package_is_seen_by_no_other_sandbox(small: Open, tmp_path: Path) -> None:
    """Each has an overlay of its own, so the same folder is no way from one to the other."""
    folder = folder_with(tmp_path / "packages", greeting="VALUE = 1")
    code = """
import fcntl, os
fd = os.open("/opt/packages/greeting.py", os.O_RDONLY)
try: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB); print("locked")
except BlockingIOError: print("held")
"""
    async with small(packages=folder) as one, small(packages=folder) as other:
        assert (await one.execute(code)).stdout == "locked\n"
        assert (await one.execute(code)).stdout == "held\n", "by the first descriptor"
        assert (await other.execute(code)).stdout == "locked\n"


async def test_each_sandbox_of_an_engine_has_its_own_folder_or_none(
    engine: SandboxRuntime, tmp_path: Path
) -> None:
    """All at once, and then again: none is given the one that was built ahead for another."""
    folders = [folder_with(tmp_path / name, **{name: f"VALUE = {name!r}"}) for name in ("one", "two")]
    code = """
import os
print(sorted(os.listdir("/opt/packages")) if os.path.exists("/opt/packages") else "none")
for name in ("one", "two"):
    try: print(__import__(name).VALUE)
    except ImportError: print("-")
"""
    expected = {folders[0]: "['one.py']\none\n-\n", folders[1]: "['two.py']\n-\ntwo\n", None: "none\n-\n-\n"}

    async def look(packages: str | None) -> None:
        async with open_sandbox(SandboxConfig.model_validate({**SMALL, "packages": packages})) as sandbox:
            result = await sandbox.execute(code)
        assert result.stdout == expected[packages], result

    for _ in range(2):
        await asyncio.gather(*(look(packages) for packages in (*expected, *expected)))
    for packages in (*expected, *expected):
        await look(packages)


async def test_a_folder_that_changed_or_was_replaced_is_seen_as_it_is_now(
    small: Open, tmp_path: Path
) -> None:
    folder = folder_with(tmp_path / "packages", first="")
    names = "import os; print(*sorted(os.listdir('/opt/packages')))"
    async with small(packages=folder) as sandbox:
        assert (await sandbox.execute(names)).stdout == "first.py\n"
        folder_with(Path(folder), second="")
        await sandbox.reset()
        assert (await sandbox.execute(names)).stdout == "first.py second.py\n"
        shutil.rmtree(folder)
        folder_with(Path(folder), third="")
        await sandbox.reset()
        assert (await sandbox.execute(names)).stdout == "third.py\n"
        shutil.rmtree(folder)
        with pytest.raises(TaskError, match="there is no folder"):
            await sandbox.reset()


async def test_a_relative_folder_is_found_again_from_another_directory(
    small: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_with(tmp_path / "packages", greeting="VALUE = 1")
    monkeypatch.chdir(tmp_path)
    async with small(packages="packages") as sandbox:
        monkeypatch.chdir("/")
        await sandbox.reset()
        assert (await sandbox.execute("import greeting; print(greeting.VALUE)")).stdout == "1\n"


@pytest.mark.parametrize("name", ["plain", "pk, a:b=c\\ \n'é\"", os.fsdecode(b"\xff\xfe")])
async def test_any_name_in_a_closed_home_will_do(small: Open, tmp_path: Path, name: str) -> None:
    home = tmp_path / "home"
    folder_with(home / name, greeting="VALUE = 1")
    (tmp_path / "link").symlink_to(home / name)
    home.chmod(0o700)
    async with small(packages=str(tmp_path / "link")) as sandbox:
        assert (await sandbox.execute("import greeting; print(greeting.VALUE)")).stdout == "1\n"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none", "there is no folder .*pip install --target"),
        ("file", "is no folder"),
        ("file/below", "is no folder"),
        ("nul\0", "cannot be read"),
        ("loop", "cannot be read"),
    ],
)
async def test_what_is_no_folder_is_refused_with_a_remedy(
    small: Open, tmp_path: Path, name: str, words: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(TaskError, match=words):
        async with small(packages=str(tmp_path / name)):
            pass
    async with small() as sandbox:  # the engine is none the worse for it
        assert (await sandbox.execute("print(1)")).stdout == "1\n"


async def test_a_folder_that_goes_while_its_zygote_starts_is_refused_too(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="No such file"):
        await ZygoteClient.start(str(tmp_path / "gone"))


@pytest.mark.parametrize("closed", ["", "package", "module.py"])
async def test_a_folder_that_only_its_owner_can_read_is_of_use_to_its_owner_alone(
    small: Open, tmp_path: Path, closed: str
) -> None:
    """Root's sandboxes are of other users than root; an ordinary user's have that user's rights."""
    folder = Path(folder_with(tmp_path / "packages", module="VALUE = 1"))
    folder_with(folder / "package", __init__="VALUE = 1")
    (folder / closed).chmod((folder / closed).stat().st_mode & 0o700)
    if os.geteuid() == 0:
        with pytest.raises(TaskError, match=r"chmod -R a\+rX"):
            async with small(packages=str(folder)):
                pass
        (folder / closed).chmod((folder / closed).stat().st_mode | 0o055)
    async with small(packages=str(folder)) as sandbox:
        result = await sandbox.execute("import module, package; print(module.VALUE + package.VALUE)")
    assert result.stdout == "2\n", result


def test_few_zygotes_are_kept_for_folders_that_nobody_uses(tmp_path: Path) -> None:
    """In an event loop of its own, beside the other tests' engine."""
    before = zygotes()

    def opened(name: str) -> AbstractAsyncContextManager[Sandbox]:
        return open_sandbox(SandboxConfig(packages=folder_with(tmp_path / name)))

    async def use_many() -> None:
        async with SandboxRuntime(), opened("used") as used:
            for number in range(6):
                async with opened(str(number)) as other:
                    assert (await other.execute("print(1)")).stdout == "1\n"
            assert (await used.execute("print(1)")).stdout == "1\n"
            # Without packages, in use, and the last that were used.
            assert len(zygotes() - before) == 1 + 1 + 4

    asyncio.run(use_many())
    assert zygotes() == before


STACKED = """
set -e
mount -t tmpfs none "$1"
cd "$1"
mkdir lower empty one two
echo 'VALUE = 1' > lower/greeting.py
mount -t overlay none -o lowerdir=lower:empty one
mount -t overlay none -o lowerdir=one:empty two
cd /
shift
exec "$@"
"""


def test_a_folder_that_cannot_be_overlaid_is_bound_and_costs_the_root_nothing(tmp_path: Path) -> None:
    """A third overlay on two is refused by the kernel; this engine is also the root of one id alone."""
    code = """
import greeting
try: open("/opt/packages/new", "w")
except OSError as error: print(greeting.VALUE, error.errno)
for line in open("/proc/self/mountinfo"):
    fields = line.split()
    if fields[4] in ("/", "/opt/packages"): print(fields[4], fields[5].split(",")[:3], "lowerdir=/" in line)
"""
    engine = [*COMMAND, "exec", "--packages", str(tmp_path / "two"), code]
    done = subprocess.run(
        [
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            STACKED,
            "sh",
            str(tmp_path),
            *engine,
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == (
        "1 30\n/ ['ro', 'nosuid', 'nodev'] True\n/opt/packages ['ro', 'nosuid', 'nodev'] False\n"
    ), done.stderr


def run_command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], check=False, cwd=cwd, capture_output=True, text=True, timeout=60
    )


def test_the_command_of_the_readme_works(numpy: str, tmp_path: Path) -> None:
    (tmp_path / "packages").symlink_to(numpy)
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"`supdist-engine (exec --packages [^`]*)`", text)
    done = run_command(*shlex.split(command), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr


@pytest.mark.parametrize(("packages", "words"), [("none", "there is no folder"), ("", "--packages")])
def test_a_wrong_folder_is_exit_2_of_the_command(tmp_path: Path, packages: str, words: str) -> None:
    done = run_command("exec", "--packages", packages, "1", cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_task_files_folder_lies_beside_it(tmp_path: Path) -> None:
    folder_with(tmp_path / "there/packages", greeting="VALUE = 'hello'")
    task = {
        "query": "q",
        "context": "c",
        "supervisor": {"handler": "scripted",
            "replies": ["```repl\nimport greeting\nFINAL(greeting.VALUE)\n```"]},
        "worker": {"handler": "builtin"},
        "sandbox": {"packages": "packages"},
    }  # fmt: skip
    (tmp_path / "there/task.json").write_text(json.dumps(task))
    done = run_command("run", "there/task.json", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr
