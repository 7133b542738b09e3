"""The training step: gradients in the compute dtype, fused AdamW on float32 copies, clipping by the global norm.

Where the model computes in bfloat16 its parameters are bfloat16, so that no pass casts them, and every trained one has a float32 copy that
the optimizer moves and that is written back: what torchtitan's FSDP does with `param_dtype` bfloat16. In float32 the copy is the parameter.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from torch_baseline.batches import Batch, to_device
from torch_baseline.weights import places


class Trainer:
    """What is trained and how.

    Args:
        spec: "parameters" says of each of mmjax's paths whether it is trained, its learning rate and its weight decay.
    """

    def __init__(self, model: nn.Module, spec: dict[str, Any], device: str):
        self.device, self.clip_norm = device, spec["optimizer"]["clip_norm"]
        self.parameters: list[nn.Parameter] = []
        self.masters: list[Tensor] = []
        groups: dict[tuple[float, float], list[Tensor]] = {}
        where = places(model, spec)
        for name, value in model.named_parameters():
            settings = spec["parameters"][where[name].path]
            value.requires_grad_(settings["trained"])
            if not settings["trained"]:
                continue
            master = value if value.dtype == torch.float32 else value.detach().float()
            self.parameters.append(value)
            self.masters.append(master)
            groups.setdefault((settings["rate"], settings["decay"]), []).append(master)
        o = spec["optimizer"]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": members, "lr": rate, "weight_decay": decay}
                for (rate, decay), members in groups.items()
            ],
            betas=(o["beta1"], o["beta2"]),
            eps=o["epsilon"],
            fused=True,
        )

    def step(self, loss_function: Callable[[Batch], Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """(loss, norm of the gradient before clipping), on the device."""
        loss = loss_function(to_device(batch, self.device))
        loss.backward()
        for value, master in zip(self.parameters, self.masters):  # noqa: B905 - one for each
            if master is not value and value.grad is not None:
                master.grad, value.grad = value.grad.float(), None
        norm = torch.nn.utils.clip_grad_norm_(
            self.masters, float("inf") if self.clip_norm is None else self.clip_norm
        )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.masters[0] is not self.parameters[0]:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, self.masters)
        return loss.detach(), norm
