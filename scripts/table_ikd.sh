#!/bin/sh
# IKD's weight and temperature: dkd+IKD over a grid of --avg and --intra_T, resnet32x4 -> resnet8x4, beside dkd.
exec sh "$(dirname "$0")/table.sh" ikd "$@"
