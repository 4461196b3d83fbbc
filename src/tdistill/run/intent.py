"""What a run is about to do, in the one sentence that it begins with."""

from __future__ import annotations

from tdistill.recipe import Recipe
from tdistill.report.measures import listed


def intent(recipe: Recipe) -> str:
    """The work of a recipe, in the order in which it is done.

    Example:
        >>> from tdistill.recipe import StudentConfig, TeacherConfig
        >>> print(intent(Recipe(TeacherConfig("big"), StudentConfig(layers=2))))
        distils big into 2 of its layers: samples 8 responses to each prompt of demo:train, \
trains the start (1000 updates), then sft, seqkd, kd and bellman_distill (1000 updates each), \
and judges 6 models on held-out prompts in 3 decodings
    """
    student, start = recipe.student, recipe.start
    into = student.path if student.layers is None else f"{student.layers} of its layers"
    first = "" if start is None else f"the start ({start.training.steps} updates), then "
    seeds = "" if recipe.seeds == 1 else f", from {recipe.seeds} training seeds"
    made = "makes its own data and models, " if recipe.world else ""
    models = 1 + recipe.seeds * (1 + len(recipe.objectives))
    each = " each" if len(recipe.objectives) > 1 else ""
    held_out = "held-out prompts" if recipe.data.test == "auto" else recipe.data.test
    return (
        f"distils {recipe.teacher.path} into {into}: {made}samples {recipe.rollouts.n} responses "
        f"to each prompt of {recipe.data.train}, trains {first}{listed(list(recipe.objectives))} "
        f"({recipe.training.steps} updates{each}){seeds}, and judges {models} models on "
        f"{held_out} in {len(recipe.evaluation.decodings)} decodings"
    )
