"""The training loop: seeded, resumable after a kill, with checkpoints, evaluations and a log."""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from motarfuse import console
from motarfuse.data import PKSampler
from motarfuse.data.any_dataset import AnyDataset, load_any_dataset
from motarfuse.engine.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, load_weights, save_checkpoint
from motarfuse.engine.config import Config
from motarfuse.engine.criterion import ReIDCriterion
from motarfuse.engine.device import autocast, choose_device, flushed_denormals
from motarfuse.engine.ema import WeightAverage
from motarfuse.engine.evaluator import (
    Evaluation,
    EvaluationSet,
    check_evaluation,
    evaluate_model,
    read_evaluation,
    write_evaluation,
)
from motarfuse.engine.history import append_history
from motarfuse.engine.logs import RunLog
from motarfuse.engine.optim import (
    build_optimizer,
    load_optimizer,
    lr_factor,
    named_trainable,
    optimizer_tensors,
    parameter_groups,
    set_lr,
)
from motarfuse.engine.outputs import tensor_bytes, write_bytes
from motarfuse.engine.random import STEP, WEIGHTS, isolated_randomness, seed_everything, stream_seed
from motarfuse.engine.run_folder import CHECKPOINTS, data_fingerprint, open_run
from motarfuse.engine.sources import Records, describe_store, open_store
from motarfuse.engine.training_batch import Batch, Batches, Varier, run_network
from motarfuse.errors import CheckpointError, ConfigError, DataError, TrainingError
from motarfuse.models import MotarFuse, build_model, load_pretrained


@dataclass(frozen=True)
class TrainResult:
    """What a training run leaves behind.

    Attributes:
        run_dir: Folder of the run.
        checkpoint: Folder of the last checkpoint.
        step: Optimizer steps done.
        evaluations: The last evaluation of each set by name.
    """

    run_dir: Path
    checkpoint: Path
    step: int
    evaluations: dict[str, Evaluation] = field(default_factory=dict)


def train(config: Config, *, resume: bool = True) -> TrainResult:
    """Trains a network as a config says.

    A run that was killed goes on from its latest checkpoint and ends, on a CPU with the same number of threads, with
    the same weights bit for bit: batches, augmentation and stochastic depth are functions of seed and step.

    Args:
        config: A whole config; ``data.root`` and ``output.run_dir`` say where.
        resume: Whether to continue a run that ``output.run_dir`` holds; False makes such a folder an error.

    Returns:
        :class:`TrainResult`. A run that is complete is not trained again, and evaluated only where the sets changed.

    Raises:
        ConfigError, DataError, CheckpointError, OutputError: What cannot be used, and what to do.
        TrainingError: The loss is not finite; the batch is kept in the run's folder.
    """
    config.validate()
    check_evaluation(config.evaluation)
    if config.data.root is None:
        raise ConfigError("data.root is not set: give the folder or table of the training data, e.g. data.root=PATH")
    device = choose_device(config.train.device)
    autocast(device, config.train.precision)  # refuses what the device cannot do before anything is written
    dataset = load_any_dataset(config.data.root, config.data.kind)
    dataset.require_training()
    check_identities(config, dataset.train)
    evaluated = evaluation_datasets(config, dataset)
    # Everything above is cheap and writes nothing; below, the images are read.
    with open_run(config, resume=resume) as run, isolated_randomness(device), flushed_denormals():
        trainer = Trainer(config, dataset, evaluated, device, run.checkpoint)
        try:
            run.start()
            return trainer.run()
        finally:
            trainer.close()


def check_identities(config: Config, records: Records) -> None:
    """Checks that a batch can be drawn from the images.

    Raises:
        DataError: They show fewer identities than a batch holds.
    """
    wanted, found = config.train.batch_size // config.train.instances, len({record.pid for record in records})
    if 2 <= found < wanted:  # a single identity is the sampler's to refuse: no batch size mends that
        raise DataError(
            f"train.batch_size / train.instances = {wanted} identities a batch, the data has {found}: "
            f"set train.batch_size to at most {found * config.train.instances}"
        )


def evaluation_datasets(config: Config, dataset: AnyDataset) -> dict[str, AnyDataset]:
    """The datasets to evaluate on by name: ``evaluation.sets``, or the training data's own query and gallery.

    Raises:
        DataError: One of them cannot be evaluated.
    """
    found: dict[str, AnyDataset] = {}
    for name, root in config.evaluation.sets.items():
        try:
            found[name] = load_any_dataset(root)
        except DataError as error:
            raise DataError(f"evaluation.sets, {name}: {error}") from error
    if not found and dataset.query and dataset.gallery:
        found = {"test": dataset}
    if not found:
        console.info(f"{dataset.root} has no query and gallery: nothing is evaluated (see evaluation.sets)")
    for subject in found.values():
        subject.require_evaluation()
    return found


class Trainer:
    """One training run; use :func:`train`.

    Args:
        config: A validated config.
        dataset: The training data.
        evaluated: Datasets to evaluate on, by name.
        device: Where to compute.
        checkpoint: What to go on from; None starts anew.

    Raises:
        CheckpointError: The checkpoint or the weights to start from do not fit.
        DataError: The images cannot be read, or the checkpoint was trained on other ones.
    """

    def __init__(
        self,
        config: Config,
        dataset: AnyDataset,
        evaluated: dict[str, AnyDataset],
        device: torch.device,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.config = config
        self.device = device
        self.run_dir = Path(config.output.run_dir)
        seed_everything(stream_seed(config.train.seed, WEIGHTS))
        self.model = build_model(config.model_name, config.model).to(device)
        if checkpoint is None and config.train.pretrained is not None:
            report = load_pretrained(self.model, config.train.pretrained)
            console.info(f"weights from {config.train.pretrained}: {report}")
        if checkpoint is None and config.train.initial is not None:
            initial = load_checkpoint(config.train.initial, training=False)
            load_weights(self.model, initial.model, initial.path)
            console.info(f"weights from {initial.path}, step {initial.metadata['step']}")
        size: tuple[int, int] = self.model.image_size  # type: ignore[assignment]
        self.evaluation_sets = [
            EvaluationSet(name, data, size, config.data, config.clip.evaluation_sampling())
            for name, data in evaluated.items()
        ]
        self.store = open_store(dataset.train, size, config.data)
        check_identities(config, self.store.records)  # again: some images may be unreadable
        self.labels = torch.tensor(self.store.labels)
        self.camids = torch.tensor(self.store.camids)
        self.sampler = PKSampler(
            self.store.labels,
            self.store.camids,
            identities=config.train.batch_size // config.train.instances,
            instances=config.train.instances,
            seed=config.train.seed,
            cross_camera=config.train.cross_camera,
        )
        self.batches = Batches(self.store, self.sampler, config)
        grid = self.model.backbone.grid if isinstance(self.model, MotarFuse) else None
        self.varier = Varier(config, grid, device)
        num_classes = int(self.labels.max()) + 1
        self.criterion = ReIDCriterion(self.model, num_classes, config.loss).to(device)
        self.optimizer = build_optimizer(parameter_groups(self.model, self.criterion, config.optim), config.optim)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16")
        self.average = WeightAverage(self.model, config.train.ema) if config.train.ema else None
        self.step = 0
        self.seconds = 0.0
        self.window: list[dict[str, float]] = []
        self.evaluations: dict[str, Evaluation] = {}
        self._logged_seconds = 0.0
        self._images = 0
        if checkpoint is not None:
            self._restore(checkpoint)
        self.log = RunLog(self.run_dir, step=self.step, tensorboard=config.output.tensorboard)
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        console.info(
            f"training {config.model_name} ({parameters:,} parameters) on {describe_store(self.store)} of "
            f"{self.sampler.num_identities:,} identities, {self.device}, steps {self.step} to {config.train.steps}"
        )

    def close(self) -> None:
        """Ends threads and closes the log."""
        self.store.close()
        for subject in self.evaluation_sets:
            subject.close()
        self.log.close()

    def run(self) -> TrainResult:
        """Trains to the last step.

        Raises:
            TrainingError: The loss is not finite.
            OutputError: The run's folder cannot be written.
        """
        settings = self.config.train
        saved = self.step if self.step else None
        places = range(self.step * settings.accumulate, settings.steps * settings.accumulate)
        batches = self.batches.read(places)
        with closing(batches), console.progress("training", settings.steps) as bar:
            while self.step < settings.steps:
                start = time.perf_counter()
                self._train_step([next(batches) for _ in range(settings.accumulate)])
                self.step += 1
                self.seconds += time.perf_counter() - start
                if self.step % settings.log_every == 0 or self.step == settings.steps:
                    note = self._log_window()
                    bar.update(bar.task_ids[0], completed=self.step, note=note)
                    if not console.console.is_terminal:
                        console.info(f"step {self.step}/{settings.steps}  {note}")
                if settings.evaluate_every and self.step % settings.evaluate_every == 0:
                    # One live display at a time: encoding shows its own bar.
                    bar.stop()
                    self._evaluate()
                    bar.start()
                if settings.checkpoint_every and self.step % settings.checkpoint_every == 0:
                    self._save()
                    saved = self.step
        # Saved first: an evaluation that fails costs no training.
        if saved != self.step:
            self._save()
        if any(self._evaluated_step(subject) != self.step for subject in self.evaluation_sets):
            self._evaluate()
        checkpoint = list_checkpoints(self.run_dir / CHECKPOINTS)[-1]
        return TrainResult(self.run_dir, checkpoint, self.step, dict(self.evaluations))

    def _train_step(self, batches: list[Batch]) -> None:
        """One optimizer step over the gradients of ``accumulate`` batches."""
        settings = self.config.train
        seed_everything(stream_seed(settings.seed, STEP, self.step))
        set_lr(self.optimizer, lr_factor(self.config.optim, self.step, settings.steps))
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, float] = {}
        for number, batch in enumerate(batches):
            chosen = torch.as_tensor(batch.indices)
            varied = self.varier(batch, self.labels[chosen], self.camids[chosen], self.step, number)
            with autocast(self.device, settings.precision):
                output = run_network(self.model, varied)
                loss, terms = self.criterion(
                    output, varied.labels, varied.copies, self.step / settings.steps, varied.frames
                )
            self._images += batch.num_frames
            values = {"loss": loss, **terms, "triplet_skipped": self.criterion.triplet.skipped}
            for key, value in values.items():
                totals[key] = totals.get(key, 0.0) + float(value.detach()) / len(batches)
            if not all(math.isfinite(value) for value in totals.values()):
                raise self._not_finite("the loss", totals, batch)
            self.scaler.scale(loss / len(batches)).backward()
        self.scaler.unscale_(self.optimizer)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        clip = self.config.optim.clip_norm
        norm = float(nn.utils.clip_grad_norm_(parameters, math.inf if clip is None else clip))
        if math.isfinite(norm):
            totals["grad_norm"] = norm
        elif not self.scaler.is_enabled():  # gradient scaling leaves such a step out and tries a smaller scale
            raise self._not_finite("the gradient", totals, batches[-1])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.model, self.step)
        self.window.append(totals)

    def _not_finite(self, what: str, terms: dict[str, float], batch: Batch) -> TrainingError:
        """Saves the batch for inspection; returns the error."""
        path = self.run_dir / f"failed-step-{self.step + 1:08d}.safetensors"
        chosen = torch.as_tensor(batch.indices)
        tensors = {
            "images": batch.pixels,
            "labels": self.labels[chosen],
            "camids": self.camids[chosen],
            "indices": chosen,
        }
        names = "\n".join(str(self.store.records[index].path) for index in batch.indices)
        write_bytes(path, tensor_bytes(tensors, {"paths": names, "step": str(self.step + 1)}))
        listed = ", ".join(f"{key} {value:g}" for key, value in terms.items())
        return TrainingError(
            f"{what} is not finite at step {self.step + 1} ({listed}); its batch is in {path}. "
            "Lower optim.lr, set optim.clip_norm, or look at the images; checkpoints before it are intact"
        )

    def _log_window(self) -> str:
        """Writes the means since the last line; returns them as text."""
        keys = dict.fromkeys(key for totals in self.window for key in totals)
        means = {key: _mean([totals[key] for totals in self.window if key in totals]) for key in keys}
        elapsed = self.seconds - self._logged_seconds
        factor = lr_factor(self.config.optim, self.step - 1, self.config.train.steps)
        values = {
            **means,
            "lr": self.config.optim.lr * factor,
            "images_per_second": self._images / max(elapsed, 1e-9),
            "seconds": self.seconds,
        }
        self.log.write("train", self.step, values)
        self._logged_seconds, self._images = self.seconds, 0
        self.window.clear()
        return f"loss {means['loss']:.3f}  {values['images_per_second']:.0f} images/s"

    def _evaluate(self) -> None:
        model = self.model if self.average is None else self.average.model
        for subject in self.evaluation_sets:
            evaluation = evaluate_model(
                model,
                subject,
                self.config.evaluation,
                step=self.step,
                device=self.device,
                precision=self.config.train.precision,
            )
            write_evaluation(evaluation, self.run_dir)
            append_history(evaluation, self.run_dir, self.seconds)
            shown = ("mAP", "rank1", "rank5", "rank10", "mINP")
            self.log.write(
                "evaluation", self.step, {"name": subject.name, **{key: evaluation.metrics[key] for key in shown}}
            )
            self.evaluations[subject.name] = evaluation
            console.info(f"step {self.step}  {evaluation}")

    def _evaluated_step(self, subject: EvaluationSet) -> int | None:
        evaluation = self.evaluations.get(subject.name)
        return None if evaluation is None else evaluation.record["step"]

    def _save(self) -> Path:
        training = {f"optimizer/{name}": tensor for name, tensor in optimizer_tensors(self.optimizer).items()}
        training |= {f"criterion/{name}": tensor for name, tensor in self.criterion.state_dict().items()}
        weights = self.model.state_dict()
        if self.average is not None:
            training |= {f"weights/{name}": tensor for name, tensor in weights.items()}
            weights = self.average.model.state_dict()
        config = self.config.to_dict()
        model_config = {key: value for key, value in config["model"].items() if key != "name"}
        return save_checkpoint(
            self.run_dir / CHECKPOINTS,
            step=self.step,
            model=weights,
            model_name=self.config.model_name,
            model_config=model_config,
            training=training,
            config=config,
            state={
                "data": data_fingerprint(self.store.records),
                "window": self.window,
                "seconds": self.seconds,
                "logged_seconds": self._logged_seconds,
                "scaler": self.scaler.state_dict(),
            },
            keep=self.config.train.keep,
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.metadata["state"]
        if state["data"] != data_fingerprint(self.store.records):
            raise DataError(
                f"{self.config.data.root} is not the data that the run in {self.run_dir} was trained on: file names, "
                "identities or cameras differ. Give the same data, or choose another output.run_dir"
            )
        parts: dict[str, dict[str, Tensor]] = {"optimizer": {}, "criterion": {}, "weights": {}}
        for name, tensor in checkpoint.training.items():
            part, rest = name.split("/", 1)
            parts[part][rest] = tensor
        path = checkpoint.path / "training.safetensors"
        weights = checkpoint.model
        if self.average is not None:
            load_weights(self.average.model, checkpoint.model, checkpoint.path / "model.safetensors")
            weights = parts["weights"]
        load_weights(self.model, weights, path)
        load_weights(self.criterion, parts["criterion"], path)
        known = {name for name, _ in named_trainable(self.model, self.criterion)}
        strange = {name.rsplit("/", 1)[0] for name in parts["optimizer"]} - known
        if strange:
            raise CheckpointError(f"{path} has optimizer state of {min(strange)}, which this network does not have")
        load_optimizer(self.optimizer, parts["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step = checkpoint.metadata["step"]
        self.window = [dict(totals) for totals in state["window"]]
        self.seconds, self._logged_seconds = state["seconds"], state["logged_seconds"]
        for subject in self.evaluation_sets:
            evaluation = read_evaluation(self.run_dir, subject, self.config.evaluation, self.step)
            if evaluation is not None:
                self.evaluations[subject.name] = evaluation


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
