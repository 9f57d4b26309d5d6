# about: the same with 6 GiB of RAM, on both sides of the 32-bit hole
# memory: 8192
# timeout: 240
. /lab/lib.sh
boot_cycle 2 6144 vmlinuz
pass
