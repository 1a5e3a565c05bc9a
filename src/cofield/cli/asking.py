"""What a verb is asked: its arguments, by the signature of a function."""

import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

Word = tyro.conf.Positional[str]
Answer = TypeVar("Answer")


def parse(options: Callable[..., Answer], verb: Callable[..., int], arguments: list[str]) -> Answer:
    """The arguments as the function reads them; --help is the function's own words."""
    return tyro.cli(
        options, prog=f"cofield {verb.__name__.replace('_', '-')}", description=verb.__doc__, args=arguments
    )


def leading_word(arguments: list[str], verb: Callable[..., int], recipes: list[str]) -> tuple[str, list[str]]:
    """The first argument, a recipe, which decides what the others may be."""
    usage = f"cofield {verb.__name__} RECIPE ..., where RECIPE is one of {', '.join(recipes)}"
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"usage: {usage}\n\n{verb.__doc__}\n\ncofield {verb.__name__} RECIPE --help lists every flag.")
        sys.exit(0)
    if not arguments or arguments[0].startswith("-"):
        raise ValueError(f"the recipe comes first: {usage}")
    return arguments[0], arguments[1:]
