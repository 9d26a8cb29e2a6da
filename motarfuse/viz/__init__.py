"""Pictures and pages: a run's report, a search's rank list, what the network sees in people, and motion fields.

``write_report`` makes one HTML page of a run, ``draw_rank_list`` one picture of a search; ``draw_people``,
``draw_canonical_posture`` and ``draw_part_matches`` show a network's parts and motion, ``draw_film_strip`` those over
the frames of a tracklet; ``draw_motion_field`` shows what ``motarfuse.ops`` computes between two images, with or
without a network.
"""

from motarfuse.viz.film_strip import draw_film_strip
from motarfuse.viz.motion_field import draw_motion_field
from motarfuse.viz.parts import draw_canonical_posture, draw_part_matches, draw_people
from motarfuse.viz.rank_list import RankEntry, draw_rank_list
from motarfuse.viz.report import write_report

__all__ = [
    "RankEntry",
    "draw_canonical_posture",
    "draw_film_strip",
    "draw_motion_field",
    "draw_part_matches",
    "draw_people",
    "draw_rank_list",
    "write_report",
]
