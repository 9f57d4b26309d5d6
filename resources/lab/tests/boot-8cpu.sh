# about: the same with 8 vCPUs
# memory: 3072
# timeout: 240
. /lab/lib.sh
boot_cycle 8 1024 vmlinuz
pass
