"""What a run is about to do, in the one sentence that it begins with."""

from __future__ import annotations

from tdistill.files import last_name
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
    teacher, prompts = last_name(recipe.teacher.path), last_name(recipe.data.train)
    into = last_name(student.path) if student.path else f"{student.layers} of its layers"
    first = "" if start is None else f"the start ({start.training.steps} updates), then "
    seeds = "" if recipe.seeds == 1 else f", from {recipe.seeds} training seeds"
    made = "makes its own data and models, " if recipe.world else ""
    models = 1 + recipe.seeds * (1 + len(recipe.objectives))
    each = " each" if len(recipe.objectives) > 1 else ""
    test = "held-out prompts" if recipe.data.test == "auto" else last_name(recipe.data.test)
    return (
        f"distils {teacher} into {into}: {made}samples {recipe.rollouts.n} responses to each "
        f"prompt of {prompts}, trains {first}{listed(list(recipe.objectives))} "
        f"({recipe.training.steps} updates{each}){seeds}, and judges {models} models on "
        f"{test} in {len(recipe.evaluation.decodings)} decodings"
    )
