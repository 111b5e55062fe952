import numpy as np

from modularbase_core.context.batch import batch_arrays
from modularbase_core.context.page import Call


def test_calls_of_several_sequences_lie_one_after_the_other() -> None:
    arrays = batch_arrays([Call(4, 2, [20, 21], 4, [1]), Call(32, 1, [48], 32, [5, 2, 3])])
    assert arrays.slots.tolist() == [20, 21, 48]
    assert arrays.starts.tolist() == [0, 2]
    assert arrays.lengths.tolist() == [2, 1]
    assert arrays.context.tolist() == [4, 32]
    assert arrays.visible.tolist() == [[1, 0, 0], [5, 2, 3]]
    fields = (arrays.slots, arrays.starts, arrays.lengths, arrays.context, arrays.visible)
    assert all(array.dtype == np.int32 and array.flags.c_contiguous for array in fields)
