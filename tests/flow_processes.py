"""What a command's process does when it is forked from one that has imported the libraries: the command, nothing else."""

import atexit
import os
import sys


def enter(arguments, folder, environment, output, errors):
    """Runs `warmstart ARGUMENTS` in `folder`, in a process group of its own."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for path, number in ((output, 1), (errors, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    sys.argv = ["warmstart", *arguments]
    from flows.cli import main

    try:
        main()
    finally:
        sys.stdout.flush()
        atexit._run_exitfuncs()  # a child of multiprocessing leaves them out
