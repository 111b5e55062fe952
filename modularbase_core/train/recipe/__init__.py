"""A training recipe: what a stage learns, from which files, for how long. Read from TOML, every key checked.

Imports no torch, so that the command line can make its flags and check a recipe before anything heavy is loaded.
"""

from modularbase_core.train.recipe.keys import STAGES, Recipe
from modularbase_core.train.recipe.reading import read_recipe
from modularbase_core.train.recipe.source import Source
from modularbase_core.train.recipe.teacher import Teacher

__all__ = ["STAGES", "Recipe", "Source", "Teacher", "read_recipe"]
