"""What each command does; `cli` has parsed the options."""

from unixkd.commands.exporting import export
from unixkd.commands.planning import plan
from unixkd.commands.several import compare, demo, show_report
from unixkd.commands.single import distill, evaluate, predict_images, train

HANDLERS = {
    "demo": demo,
    "train": train,
    "distill": distill,
    "evaluate": evaluate,
    "predict": predict_images,
    "compare": compare,
    "plan": plan,
    "report": show_report,
    "export": export,
}
"""Every command by name: options -> None."""
