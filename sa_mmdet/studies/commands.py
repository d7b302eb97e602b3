"""What the command for studies does: plan, train, submit to slurm, tell the state, and judge."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sa_mmdet.engine.termination import EXIT_STATUS
from sa_mmdet.messages import listed

from .data import check_data
from .judging import Judge
from .launching import Terminated, passing_on_termination
from .paper import Group
from .plan import check_disk, plan
from .run_queue import work
from .screens import Lines, say
from .slurm import submit
from .status import status
from .study import Study, make_study, total_batch
from .training import Training
from .trainings import check_finished, check_settings, results_prefix

_TOOL = Path(__file__).resolve().parents[1] / ".mim" / "tools" / "analysis_tools" / "run_comparison.py"


@dataclass(frozen=True)
class Options:
    """What the user asks for."""

    seeds: Sequence[int]
    work_dir: Path
    cfg_options: Sequence[str]
    jobs: int | None  # runs at a time; None for one here, and for as many as slurm lets run
    gpus: int  # of this machine
    gpus_per_run: int | None
    scale_lr: bool
    keep_checkpoints: str
    resamples: int
    level: float
    difference: float | None
    command: Sequence[str]  # as it was given, for what is written
    task_arguments: Sequence[str]  # as a task of slurm gets it

    @property
    def processes(self) -> int:
        """Of each run."""
        return self.gpus_per_run or 1


def compare_configs(
    groups: Sequence[Group], options: Options, action: str = "all", number: int | None = None, slurm: str | None = None
) -> None:
    """Do one of the actions with a study, and print what it says.

    Args:
        groups: The configs, those together that are compared.
        options: What the user asks for.
        action: 'all' trains and judges, 'judge' judges what is finished, 'run' trains one run, 'plan_only' and 'status'
            change nothing.
        number: Of the run for 'run', from 1.
        slurm: Options for sbatch, to submit the runs instead; None to train here.

    Raises:
        ValueError: The study cannot be begun, a run failed, or something cannot be judged.
    """
    seeds = options.seeds
    if number is not None:  # a task of slurm reads its own config alone
        config, seed = _numbered(groups, seeds, number)
        groups, seeds = [Group("", (config,))], [seed]
    made = make_study(groups, seeds, options.work_dir, options.cfg_options, options.processes, options.scale_lr)
    judge = Judge(made, options.resamples, options.level, options.difference, options.command, say)
    if number is None:
        judge.check()
    if action == "status":
        print(*status(made.runs), sep="\n")
    elif action == "plan_only":
        at_once = options.jobs or 1
        print(*plan(made.runs, at_once, options.gpus, made.work_dir, options.keep_checkpoints), sep="\n")
    elif action == "judge":
        _judge(made, judge, [])
    else:
        _check(made.runs, options, here=slurm is None, alone=number is not None)
        if slurm is not None:
            arguments = (options.task_arguments, len(made.runs), options.jobs, options.gpus_per_run)
            print(submit(_TOOL, *arguments, slurm, made.work_dir))
            return
        failures = _train(made.runs, options, wait=number is None)
        if number is None:
            _judge(made, judge, failures)
        elif failures:
            raise ValueError(failures[0])


def _numbered(groups: Sequence[Group], seeds: Sequence[int], number: int) -> tuple[str, int]:
    """The config and the seed of a run by its number, from 1, in the order of :class:`.study.Study`."""
    runs = [(config, seed) for seed in seeds for group in groups for config in group.configs]
    if number > len(runs):
        raise ValueError(f"--run {number}: the study has {len(runs)} runs")
    return runs[number - 1]


def _check(runs: Sequence[Training], options: Options, here: bool, alone: bool) -> None:
    """Check what can be known before the first run begins; a task of slurm, whose study was checked, does less."""
    needed = (options.jobs or 1) * options.processes
    if here and 0 < options.gpus < needed:
        raise ValueError(
            f"{options.jobs or 1} runs at a time with {options.processes} GPUs each need {needed} GPUs, but there are "
            f"{options.gpus}: give smaller --jobs or --gpus-per-run"
        )
    for run in runs:
        check_settings(run)
        if run.evaluator:
            results_prefix(run)
    waiting = [run for run in runs if not run.is_finished]
    if not alone:
        check_data({run.config: run.cfg for run in waiting}.values())
        check_disk(waiting, options.jobs or 1, options.work_dir, options.keep_checkpoints)
    _tell_of_learning_rate(waiting)


def _tell_of_learning_rate(runs: Sequence[Training]) -> None:
    """Say how the learning rate was fitted to the batch, or that it does not fit."""
    batches = {
        (*found, bool(run.cfg.auto_scale_lr.get("enable"))) for run in runs if (found := total_batch(run)) is not None
    }
    for images, base, scaled in sorted(batches):
        if images != base and scaled:
            print(f"{images} images per step: learning rates are multiplied by {images}/{base} (auto_scale_lr)")
        elif images != base:
            print(f"{images} images per step, but the learning rates are for {base}: see --auto-scale-lr")


def _train(runs: Sequence[Training], options: Options, wait: bool) -> list[str]:
    try:
        with Lines() as screen, passing_on_termination():
            return work(runs, options.jobs or 1, options.gpus, screen, options.keep_checkpoints, wait)
    except Terminated:
        raise SystemExit(EXIT_STATUS) from None


def _judge(made: Study, judge: Judge, failures: Sequence[str]) -> None:
    """Judge those groups of which all runs are finished, and name the others; one that cannot be judged stops none."""
    unfinished, unjudged = [], []
    for group in made.groups:
        runs = [run for own in made.of(group).values() for run in own]
        missing = [run.name for run in runs if not run.is_finished]
        unfinished += missing
        if missing:
            continue
        try:
            for run in runs:
                check_finished(run)
            for path in (*judge.judge(group), *judge.report(group)):
                say(path)
        except (OSError, ValueError) as error:
            unjudged.append(str(error))
    if failures:
        unjudged.append(f"{len(failures)} of {len(made.runs)} runs failed:\n" + "\n".join(failures))
    elif unfinished:
        unjudged.append(
            f"{len(unfinished)} of {len(made.runs)} runs are not finished, and not judged: {listed(unfinished)}"
        )
    if unjudged:
        raise ValueError("\n".join(dict.fromkeys(unjudged)))
