"""Pictures and pages: a run's report, a search's rank list, and what the network sees in people.

``write_report`` makes one HTML page of a run, ``draw_rank_list`` one picture of a search; ``draw_people``,
``draw_canonical_posture`` and ``draw_part_matches`` show parts and motion.
"""

from motarfuse.viz.parts import draw_canonical_posture, draw_part_matches, draw_people
from motarfuse.viz.rank_list import RankEntry, draw_rank_list
from motarfuse.viz.report import write_report

__all__ = [
    "RankEntry",
    "draw_canonical_posture",
    "draw_part_matches",
    "draw_people",
    "draw_rank_list",
    "write_report",
]
