/* Memory contents: address-derived patterns in every RAM range of the boot memory map. RAM above 4 GiB is
 * reached through a sliding 1 GiB window, so that page tables stay small for any size of machine. */
#include "guest.h"

enum { RAM = 1 };
#define GIB (1UL << 30)
#define MIB (1UL << 20)
#define WINDOW (1UL << 39)

extern u64 identity_pml4[];
extern u8 memory_end[];
static u64 window_pdpt[512] __attribute__((aligned(4096)));
static u64 window_pd[512] __attribute__((aligned(4096)));
static u64 window_gib = ~0UL;

void *map_physical(u64 address)
{
    if (address < 4 * GIB)
        return at(address);
    if (address / GIB != window_gib) {
        window_gib = address / GIB;
        for (u64 i = 0; i < 512; i++)
            window_pd[i] = window_gib * GIB + i * 2 * MIB + 0x83;
        window_pdpt[0] = (u64)window_pd | 3;
        identity_pml4[1] = (u64)window_pdpt | 3;
        asm volatile("mov %0, %%cr3" ::"r"(identity_pml4) : "memory");
    }
    return at(WINDOW + address % GIB);
}

static u64 pattern(u64 address)
{
    return (address ^ 0x5a5a5a5a5a5a5a5a) * 0x9e3779b97f4a7c15;
}

/* Leaves out the first megabyte and the guest's own image. */
static u64 first_usable(const struct range *range)
{
    u64 own_end = (u64)memory_end;
    return range->start < own_end ? own_end : range->start;
}

static int is_initrd(u64 address)
{
    return address + 8 > initrd_start && address < initrd_start + initrd_size;
}

static u64 bad_places, high_places;

static u64 visit(int check, u64 address)
{
    u64 *place = map_physical(address);
    if (is_initrd(address))
        return 0;
    if (!check)
        *place = pattern(address);
    else if (*place != pattern(address))
        bad_places++;
    high_places += address >= 4 * GIB;
    return 1;
}

/* Writes or checks the first and the last 8 bytes of each `stride` of RAM; returns how many places. */
static u64 sweep(int check, u64 stride)
{
    u64 places = 0;
    bad_places = high_places = 0;
    for (u32 i = 0; i < memory_map_len; i++) {
        const struct range *range = &memory_map[i];
        u64 end = (range->start + range->size) & ~7UL, next;
        if (range->type != RAM)
            continue;
        for (u64 start = first_usable(range); start + 16 <= end; start = next) {
            next = (start / stride + 1) * stride;
            if (next > end)
                next = end;
            places += visit(check, start) + visit(check, next - 8);
        }
    }
    return places;
}

void cmd_memory(u64 stride_mib)
{
    u64 stride = (stride_mib ? stride_mib : 1) * MIB;
    u64 written = sweep(0, stride), checked = sweep(1, stride);
    print("memory=%s mem=%d places=%d above4g=%d bad=%d\n", bad_places || written != checked ? "bad" : "ok", ram_total(),
          checked, high_places, bad_places);
}

/* Visits 8 bytes of each 4 KiB page of the first `mib` MiB of usable RAM; returns how many. */
static u64 pages(u64 mib, int check)
{
    u64 left = mib * 256, done = 0;
    bad_places = 0;
    for (u32 i = 0; i < memory_map_len; i++) {
        const struct range *range = &memory_map[i];
        if (range->type != RAM)
            continue;
        u64 a = (first_usable(range) + 4095) & ~4095UL;
        for (; left && a + 4096 <= range->start + range->size; a += 4096, left--)
            done += visit(check, a);
    }
    return done;
}

void cmd_fill(u64 mib)
{
    print("fill=done pages=%d\n", pages(mib, 0));
}

void cmd_verify(u64 mib)
{
    u64 done = pages(mib, 1);
    print("verify=%s pages=%d bad=%d\n", bad_places ? "bad" : "ok", done, bad_places);
}
