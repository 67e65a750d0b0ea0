"""A trained student in formats that others can use, each compared with the student itself before it is kept."""

from unixkd.export.export import FORMATS, Artefact, export_student, prepare
from unixkd.export.hub import push, upload_plan
from unixkd.export.model_card import Publication, write_model_card
from unixkd.export.verify import Agreement, Sample, compare, random_sample, real_sample

__all__ = [
    "FORMATS",
    "Agreement",
    "Artefact",
    "Publication",
    "Sample",
    "compare",
    "export_student",
    "prepare",
    "push",
    "random_sample",
    "real_sample",
    "upload_plan",
    "write_model_card",
]
