"""The engine on photographs of real people."""

from __future__ import annotations

from pathlib import Path

import pytest

from motarfuse.engine.config import load_config
from motarfuse.engine.trainer import train


@pytest.mark.real_data
def test_sixty_steps_beat_the_untrained_network_on_people_never_seen(real_data: Path, tmp_path: Path) -> None:
    def trained(steps: int) -> float:
        config = load_config(
            None,
            [
                f"data.root={real_data / 'pku-reid'}",
                f"output.run_dir={tmp_path / str(steps)}",
                "output.tensorboard=no",
                "model.image_size=[64,32]",
                "augment.pad_px=4",
                "augment.erasing_probability=0",
                "train.batch_size=32",
                "train.checkpoint_every=0",
                "train.device=cpu",
                f"train.steps={steps}",
            ],
        )
        metrics = train(config).evaluations["test"].metrics
        assert (metrics["num_valid"], metrics["num_gallery"]) == (96, 96)
        return metrics["mAP"]

    # 12 people, camera 2 against camera 1: an untrained network reaches 12.7 mAP, 60 such steps 24.
    assert trained(60) > trained(1) + 0.06
