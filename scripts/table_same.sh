#!/bin/sh
# The students of the same family as their teacher: 7 pairs, every method of the published table, and IKD.
exec sh "$(dirname "$0")/table.sh" same "$@"
