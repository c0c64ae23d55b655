"""Options that exclude each other are refused."""

import pytest

from training.options import parse_options

REQUIRED = ["--dataset", "owner/name", "--output_dir", "run"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--resume --overwrite", "exclude each other"),
        ("--scale 2 1", "--scale MIN is larger than MAX"),
        ("--size_schedule 0:96,0.5:128 --image_size 64", "ends at 128 pixels"),
        ("--size_schedule 0.5:96", "must start at progress 0"),
        ("--feature_weight 1", "needs a --teacher"),
        ("--teacher_cache 4", "needs a --teacher"),
        ("--push_to_hub", "needs --hub_model_id"),
        ("--hub_model_id owner/name", "need --push_to_hub"),
    ],
)
def test_options_that_do_not_go_together_are_refused(given, said, capsys):
    with pytest.raises(SystemExit) as end:
        parse_options([*REQUIRED, *given.split()])
    assert end.value.code == 2 and said in capsys.readouterr().err
