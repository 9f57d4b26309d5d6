/* Configuration space of bus 0 by port (CF8/CFC) and by memory (ECAM): a listing that compares both ways, and a
 * bounded storm of pseudo-random accesses of every size and alignment. */
#include "guest.h"

enum { ADDRESS = 0xcf8, DATA = 0xcfc };

static u32 port_read(u32 function, u32 offset)
{
    out32(ADDRESS, 0x80000000 | function << 8 | (offset & 0xfc));
    return in32(DATA);
}

static volatile u8 *ecam(u32 function, u32 offset)
{
    return map_physical(ecam_base + ((u64)function << 12) + offset);
}

static u32 list(int quiet)
{
    u32 found = 0, differing = 0;
    if (!ecam_base)
        acpi_walk();
    for (u32 function = 0; function < 256; function++) {
        u32 id = port_read(function, 0);
        if ((id & 0xffff) == 0xffff)
            continue;
        found++;
        u32 class = port_read(function, 8) >> 8;
        if (ecam_base && *(volatile u32 *)ecam(function, 0) != id)
            differing++;
        if (!quiet)
            print("pci 00:%x.%d id=%x:%x class=%x\n", (u64)(function >> 3), (u64)(function & 7), (u64)(id & 0xffff),
                  (u64)(id >> 16), (u64)class);
    }
    if (!quiet)
        print("pci=%s functions=%d ecam=0x%x\n", differing ? "differs" : "ok", (u64)found, ecam_base);
    return found;
}

u32 pci_functions(void)
{
    return list(1);
}

void cmd_pci(void)
{
    list(0);
}

static void port_access(u32 function, u32 offset, u32 kind, u32 value)
{
    out32(ADDRESS, (kind & 64 ? 0 : 0x80000000) | function << 8 | (offset & 0xfc));
    u16 port = (u16)(DATA + (offset & 3));
    switch (kind & 7) {
    case 0: out8(port, (u8)value); break;
    case 1: out16(port, (u16)value); break;
    case 2: out32(port, value); break;
    case 3: in8(port); break;
    case 4: in16(port); break;
    case 5: in32(port); break;
    /* Parts of the address register, but not 0xcf9, which resets many machines. */
    case 6: out8(value & 1 ? ADDRESS : ADDRESS + 2, (u8)(value >> 8)); break;
    case 7: out16(ADDRESS + 2, (u16)(value >> 8)); break;
    }
}

static void ecam_access(u32 function, u32 offset, u32 kind, u32 value)
{
    volatile u8 *place = ecam(function, offset);
    switch (kind & 7) {
    case 0: *place = (u8)value; break;
    case 1: *(volatile u16 *)place = (u16)value; break;
    case 2: *(volatile u32 *)place = value; break;
    case 3: *(volatile u64 *)place = (u64)value << 32 | value; break;
    case 4: (void)*place; break;
    case 5: (void)*(volatile u16 *)place; break;
    case 6: (void)*(volatile u32 *)place; break;
    case 7: (void)*(volatile u64 *)place; break;
    }
}

void cmd_pci_fuzz(u64 count)
{
    static const u32 special[] = { 0, 0xffffffff, 0xfffffffe, 0xffff, 0x7, 0xc0000000, 0xfee00000, 0x100000 };
    u32 before = pci_functions();
    for (u64 i = 0; i < count; i++) {
        u32 r = random32(), value = random32();
        /* Mostly functions that exist: the first 8 slots and the header's registers. */
        u32 function = r & 1 ? r >> 8 & 0xff : r >> 8 & 0x3f;
        u32 offset = r & 2 ? r >> 16 & 0xff : r >> 16 & 0x3f;
        if (value & 0x10000)
            value = special[value & 7];
        if (r & 4 && ecam_base)
            ecam_access(function, r & 8 ? r >> 16 & 0xfff : offset, r >> 4, value);
        else
            port_access(function, offset, r >> 4 | (r & 0xff000000) >> 24, value);
    }
    print("pcifuzz=alive count=%d before=%d after=%d\n", count, (u64)before, (u64)pci_functions());
}
