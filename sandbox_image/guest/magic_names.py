"""The IPython commands that a cell may hold, and what to write for others."""

from __future__ import annotations

# They change how a notebook looks or reloads; here they have nothing to do.
IGNORED = frozenset(
    {
        "matplotlib",
        "config",
        "autoreload",
        "reload_ext",
        "unload_ext",
        "precision",
        "colors",
        "xmode",
        "pylab",
    }
)
# IPython gives these to the shell.
SHELL = frozenset({"ls", "ll", "cat", "mkdir", "rm", "rmdir", "cp", "mv", "head", "tail", "wc", "man"})
# name: method of ``Magics``
LINE = {
    "cd": "cd", "pwd": "pwd", "env": "env", "set_env": "env", "timeit": "timeit", "prun": "prun",
    "who": "who",
    "who_ls": "who_ls", "whos": "who", "pip": "install", "conda": "install", "mamba": "install",
    "uv": "install", "sx": "shell_lines", "system": "shell_lines", "run": "run",
}  # fmt: skip
CELL = {
    "bash": "script", "sh": "script", "script": "script", "system": "script", "python": "script",
    "python3": "script", "perl": "script", "timeit": "timeit_cell", "prun": "prun_cell",
    "writefile": "writefile",
    "file": "writefile", "html": "show", "HTML": "show", "svg": "show", "SVG": "show",
    "markdown": "show", "latex": "show",
}  # fmt: skip
INSTEAD = {
    "load_ext": "extensions cannot be loaded; import the library and call it",
    "debug": "print the values, or use traceback.print_exc()",
    "pdb": "print the values, or use traceback.print_exc()",
    "sql": "use sqlite3",
    "reset": "use `del NAME` for each name",
    "history": "keep what you need in variables",
    "load": "use open(PATH).read()",
    "store": "use pickle and a file",
    "lsmagic": "use Python, or %time, %timeit, %cd, %pwd, %env, %%bash, %%writefile",
}
