"""A trained student in formats that others can use, each compared with the student itself before it is kept."""

from unixkd.export.export import Artefact, export_student, prepare
from unixkd.export.formats import FORMATS
from unixkd.export.hub import push, upload_plan
from unixkd.export.model_card import Publication, write_model_card
from unixkd.export.preparation import Preparation, preparation_of
from unixkd.export.script import export_script
from unixkd.export.verify import Agreement, Sample, compare, random_sample, real_sample

__all__ = [
    "FORMATS",
    "Agreement",
    "Artefact",
    "Preparation",
    "Publication",
    "Sample",
    "compare",
    "export_script",
    "export_student",
    "preparation_of",
    "prepare",
    "push",
    "random_sample",
    "real_sample",
    "upload_plan",
    "write_model_card",
]
