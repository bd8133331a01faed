"""The paper's supervised half: classifiers trained with CAMAL, on torchvision's networks."""

import sys

from camal_rl.errors import UserError, in_one_line, print_mistake


def check_torchvision() -> None:
    """Import torchvision, to see whether it is there and works.

    Raises:
        UserError: it can't be imported.
    """
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"this needs {error.name}: pip install 'camal-rl[vision]'.") from error
    except (ImportError, RuntimeError, OSError, AttributeError) as error:  # built for another torch
        raise UserError(
            f"torchvision can't be imported ({in_one_line(error)}): install a torchvision that was "
            "built for the torch that is here, pip install --upgrade torch torchvision."
        ) from error


def need_torchvision() -> None:
    """End a command at its beginning, with one line, where torchvision can't be imported."""
    try:
        check_torchvision()
    except UserError as mistake:
        sys.exit(print_mistake(mistake))
