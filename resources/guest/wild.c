/* A seeded pseudo-random generator (xorshift64*) and a bounded storm of port and MMIO accesses. Left out is only
 * what ends the machine by design or is KVM's own: the power register, i8042 commands, LAPIC and IOAPIC. */
#include "guest.h"

static u64 state = 0x9e3779b97f4a7c15;

void random_seed(u64 seed)
{
    state = seed * 0x9e3779b97f4a7c15 | 1;
}

u32 random32(void)
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (u32)(state * 0x2545f4914f6cdd1d >> 32);
}

static int ends_machine(u16 port)
{
    return (port >= 0x5f8 && port < 0x608) || (port >= 0x5c && port <= 0x64) || (port >= 0xcf6 && port <= 0xcf9)
        || (port >= 0x8f && port <= 0x92);
}

static void port_access(u16 port, u32 kind, u32 value)
{
    switch (kind % 6) {
    case 0: in8(port); break;
    case 1: in16(port); break;
    case 2: in32(port); break;
    case 3: out8(port, (u8)value); break;
    case 4: out16(port, (u16)value); break;
    case 5: out32(port, value); break;
    }
}

static void mmio_access(u64 address, u32 kind, u32 value)
{
    volatile u8 *place = at(address);
    switch (kind % 8) {
    case 0: (void)*place; break;
    case 1: (void)*(volatile u16 *)place; break;
    case 2: (void)*(volatile u32 *)place; break;
    case 3: (void)*(volatile u64 *)place; break;
    case 4: *place = (u8)value; break;
    case 5: *(volatile u16 *)place = (u16)value; break;
    case 6: *(volatile u32 *)place = value; break;
    case 7: *(volatile u64 *)place = (u64)value << 32 | value; break;
    }
}

void cmd_wild_io(u64 count)
{
    u64 hole = (low_ram_end() + 0xfffff) & ~0xfffffUL;
    u64 span = 0xfec00000 - hole;
    irq_disable();
    for (u64 i = 0; i < count; i++) {
        u32 r = random32(), value = random32();
        if (r & 1) {
            /* Half of them where devices are. */
            u16 port = (u16)(r & 2 ? r >> 16 : (r >> 16) & 0xfff);
            if (!ends_machine(port))
                port_access(port, r >> 4 & 0xff, value);
        } else {
            u64 address = hole + ((u64)random32() << 16 | (r >> 16)) % (span - 8);
            mmio_access(address, r >> 4 & 0xff, value);
        }
    }
    serial_reset();
    print("\nwildio=alive count=%d\n", count);
}
