#!/bin/sh
# The students of another family than their teacher: 7 pairs, every method of the published table, and IKD.
exec sh "$(dirname "$0")/table.sh" different "$@"
