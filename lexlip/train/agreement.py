"""What the processes of a run agree on before each step, in one exchange."""

import torch

from lexlip.utils.distributed import gather_rows, world_size


class Agreement:
    """Each process's wishes, and what all of them will do after the step: what any of them wished."""

    def __init__(self) -> None:
        self.wishes = {"stop": False, "save": False}  # of this process; callbacks set them before a step
        self.stop = self.save = False  # what was agreed on

    def reach(self, rows: int, skipped: int, device: torch.device) -> tuple[list[int], bool]:
        """Exchange the rows of this process's batch and how many samples it had to leave out.

        Returns:
            The rows of every process, and whether any process left a sample out.
        """
        own = torch.tensor([[rows, skipped, self.wishes["stop"], self.wishes["save"]]], device=device)
        everyone = gather_rows(own, [1] * world_size())
        self.stop, self.save = everyone[:, 2:].any(0).tolist()
        return everyone[:, 0].tolist(), bool(everyone[:, 1].any())
