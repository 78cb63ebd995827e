#!/bin/sh
# One student per method with the published weights, resnet32x4 -> resnet8x4, and a table of them.
exec sh "$(dirname "$0")/table.sh" methods "$@"
