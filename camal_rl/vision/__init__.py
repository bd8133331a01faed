"""The paper's supervised half: six classifiers trained with CAMAL, on torchvision's networks."""

import sys

from camal_rl import UserError, print_mistake


def need_torchvision() -> None:
    """For the beginning of a command: end with one line where torchvision can't be imported."""
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError as error:
        mistake = f"classifiers need {error.name}: pip install 'camal-rl[vision]'."
    except (ImportError, RuntimeError, OSError, AttributeError) as error:  # built for another torch
        mistake = (
            f"torchvision can't be imported ({' '.join(str(error).split())}): install one that was built for "
            "the torch that is here, pip install --upgrade torch torchvision."
        )
    else:
        return
    sys.exit(print_mistake(UserError(mistake)))
