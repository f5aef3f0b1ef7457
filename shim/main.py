"""Where the launcher enters: `python -I -S main.py IGNORED EXECFN DELEGATE ARGUMENT…`.

Nothing is decided here; only our own directory is put on the path, since -I keeps the script's directory off it.
"""

import gc
import sys

gc.disable()  # a decision lives for milliseconds: collecting costs one of them and frees nothing
sys.path.insert(0, __file__.rpartition("/shim/")[0])

from shim.cli import main  # noqa: E402

sys.exit(main(sys.argv[1:]))
