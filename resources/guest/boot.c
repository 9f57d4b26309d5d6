/* What the boot protocol says: memory map, command line, initramfs and RSDP, from the PVH start info
 * (xen/include/public/arch-x86/hvm/start_info.h) or the zero page (Documentation/arch/x86/zero-page.rst). All of
 * it is copied, since later tests overwrite the memory it lies in. */
#include "guest.h"

enum { RAM = 1 };

struct PACKED hvm_start_info {
    u32 magic, version, flags, nr_modules;
    u64 modlist, cmdline, rsdp, memmap;
    u32 memmap_entries, reserved;
};
struct PACKED hvm_entry { u64 start, size; u32 type, reserved; };
struct PACKED hvm_module { u64 start, size, cmdline, reserved; };
struct PACKED e820_entry { u64 start, size; u32 type; };

struct range memory_map[64];
u32 memory_map_len;
char command_line[4096];
u64 boot_rsdp, initrd_start, initrd_size;
static const char *protocol_name;

static void add_range(u64 start, u64 size, u32 type)
{
    if (memory_map_len < sizeof memory_map / sizeof *memory_map)
        memory_map[memory_map_len++] = (struct range){ start, size, type };
}

static void copy_command_line(const char *from)
{
    u32 n = 0;
    while (from && from[n] && n < sizeof command_line - 1) {
        command_line[n] = from[n] == '\n' || from[n] == '\t' ? ' ' : from[n];
        n++;
    }
}

static void read_start_info(const struct hvm_start_info *info)
{
    protocol_name = info->magic == 0x336ec578 ? "pvh" : "pvh-without-magic";
    copy_command_line(at(info->cmdline));
    boot_rsdp = info->rsdp;
    if (info->nr_modules) {
        const struct hvm_module *module = at(info->modlist);
        initrd_start = module->start;
        initrd_size = module->size;
    }
    const struct hvm_entry *entry = at(info->memmap);
    for (u32 i = 0; info->version >= 1 && i < info->memmap_entries; i++)
        add_range(entry[i].start, entry[i].size, entry[i].type);
}

static void read_zero_page(const u8 *page)
{
    protocol_name = memcmp(page + 0x202, "HdrS", 4) ? "linux64-without-header" : "linux64";
    boot_rsdp = *(const u64 *)(page + 0x70);
    copy_command_line(at(*(const u32 *)(page + 0x228) | (u64) * (const u32 *)(page + 0xc8) << 32));
    initrd_start = *(const u32 *)(page + 0x218) | (u64) * (const u32 *)(page + 0xc0) << 32;
    initrd_size = *(const u32 *)(page + 0x21c) | (u64) * (const u32 *)(page + 0xc4) << 32;
    const struct e820_entry *entry = (const void *)(page + 0x2d0);
    for (u32 i = 0; i < page[0x1e8]; i++)
        add_range(entry[i].start, entry[i].size, entry[i].type);
}

void read_boot_info(int protocol, u64 address)
{
    if (protocol == 0)
        read_start_info(at(address));
    else
        read_zero_page(at(address));
}

u64 ram_total(void)
{
    u64 total = 0;
    for (u32 i = 0; i < memory_map_len; i++)
        if (memory_map[i].type == RAM)
            total += memory_map[i].size;
    return total;
}

/* End of the RAM below 4 GiB. */
u64 low_ram_end(void)
{
    u64 end = 0;
    for (u32 i = 0; i < memory_map_len; i++) {
        u64 last = memory_map[i].start + memory_map[i].size;
        if (memory_map[i].type == RAM && last <= 1UL << 32 && last > end)
            end = last;
    }
    return end;
}

void cmd_memmap(void)
{
    for (u32 i = 0; i < memory_map_len; i++)
        print("range start=0x%x size=0x%x type=%d\n", memory_map[i].start, memory_map[i].size, (u64)memory_map[i].type);
    print("boot=%s mem=%d\n", protocol_name, ram_total());
}

/* Sums every `step`th byte of the initramfs, wherever in memory it lies. */
void cmd_initrd(u64 step)
{
    u64 sum = 0;
    for (u64 offset = 0; offset < initrd_size; offset += step ? step : 1)
        sum += *(const u8 *)map_physical(initrd_start + offset);
    print("initrd size=%d sum=%d\n", initrd_size, sum);
}
