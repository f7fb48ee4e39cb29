"""Exchange: what is computed of all classes at once is what a class gets by itself."""

from __future__ import annotations

import torch

from ralib.classification.exchange import class_medians


def test_class_medians_are_those_of_each_class_by_itself() -> None:
    generator = torch.Generator().manual_seed(1)
    index = torch.randint(-1, 6, (200,), generator=generator)
    index[index == 4] = 0
    values = torch.rand(200, generator=generator)
    alone = torch.stack(
        [values[index == k].median() if (index == k).any() else torch.tensor(torch.nan) for k in range(7)]
    )
    torch.testing.assert_close(class_medians(values, index, 7), alone, rtol=0, atol=0, equal_nan=True)
    assert alone.isnan().tolist() == [False] * 4 + [True, False, True]
