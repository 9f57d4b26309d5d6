/* Time as the guest sees it: kvm-clock (Documentation/virt/kvm/x86/msr.rst and cpuid.rst), TSC, CMOS clock; and
 * the CPUID leaves that tests compare. */
#include "guest.h"

enum { KVM_LEAF = 0x40000000, FEATURE_CLOCK2 = 1 << 3, MSR_WALL_CLOCK = 0x4b564d00, MSR_SYSTEM_TIME = 0x4b564d01,
       GUEST_STOPPED = 2 };

struct PACKED vcpu_time { u32 version, pad; u64 tsc, system; u32 multiplier; signed char shift; u8 flags, pad2[2]; };
struct PACKED wall_clock { u32 version, seconds, nanoseconds; };

static struct vcpu_time page __attribute__((aligned(64)));
static struct wall_clock wall __attribute__((aligned(64)));
static int registered;

static int has_kvm_clock(void)
{
    u32 r[4];
    cpuid(1, 0, r);
    if (!(r[2] >> 31))
        return 0;
    cpuid(KVM_LEAF, 0, r);
    if (memcmp(&r[1], "KVMKVMKVM\0\0\0", 12))
        return 0;
    cpuid(KVM_LEAF + 1, 0, r);
    return (r[0] & FEATURE_CLOCK2) != 0;
}

/* Nanoseconds, 0 without a kvm-clock. `flags` gets those of the page; "guest stopped" is then acknowledged. */
u64 kvm_clock(u32 *flags)
{
    volatile struct vcpu_time *time = &page;
    if (!registered) {
        if (!has_kvm_clock())
            return 0;
        registered = 1;
        wrmsr(MSR_SYSTEM_TIME, (u64)&page | 1);
    }
    for (;;) {
        u32 version = time->version;
        asm volatile("" ::: "memory");
        u64 delta = rdtsc() - time->tsc;
        delta = time->shift < 0 ? delta >> -time->shift : delta << time->shift;
        u64 now = time->system + (u64)((unsigned __int128)delta * time->multiplier >> 32);
        *flags = time->flags;
        asm volatile("" ::: "memory");
        if (!(version & 1) && version == time->version) {
            if (*flags & GUEST_STOPPED)
                time->flags &= (u8)~GUEST_STOPPED;
            return now;
        }
    }
}

/* Falls back on a 1 GHz guess for the TSC where there is no kvm-clock. */
void delay_us(u64 microseconds)
{
    u32 flags;
    u64 start = kvm_clock(&flags), tsc = rdtsc();
    if (start)
        while (kvm_clock(&flags) - start < microseconds * 1000)
            cpu_relax();
    else
        while (rdtsc() - tsc < microseconds * 1000)
            cpu_relax();
}

void cmd_clock(void)
{
    u32 flags = 0;
    u64 now = kvm_clock(&flags);
    if (now) {
        wrmsr(MSR_WALL_CLOCK, (u64)&wall);
        print("clock=%d flags=%x wall=%d tsc=%d\n", now, (u64)flags, (u64)wall.seconds, rdtsc());
    } else {
        print("clock=none tsc=%d\n", rdtsc());
    }
}

static u64 cmos(u8 index)
{
    out8(0x70, index);
    return in8(0x71);
}

void cmd_rtc(void)
{
    for (int i = 0; i < 100000 && cmos(0x0a) & 0x80; i++)
        cpu_relax();
    print("rtc year=%x month=%x day=%x hour=%x minute=%x second=%x b=%x\n", cmos(9), cmos(8), cmos(7), cmos(4), cmos(2),
          cmos(0), cmos(0x0b));
}

void cmd_cpuid(void)
{
    static const u32 leaves[][2] = { { 0, 0 }, { 1, 0 }, { 4, 0 }, { 7, 0 }, { 0xb, 0 }, { 0xb, 1 }, { 0xd, 0 }, { 0x1f, 0 },
        { KVM_LEAF, 0 }, { KVM_LEAF + 1, 0 }, { 0x80000000, 0 }, { 0x80000001, 0 }, { 0x80000008, 0 }, { 0x8000001e, 0 } };
    for (u32 i = 0; i < sizeof leaves / sizeof *leaves; i++) {
        u32 r[4];
        cpuid(leaves[i][0], leaves[i][1], r);
        print("cpuid %x.%x eax=%x ebx=%x ecx=%x edx=%x\n", (u64)leaves[i][0], (u64)leaves[i][1], (u64)r[0], (u64)r[1],
              (u64)r[2], (u64)r[3]);
    }
    print("cpuid=done\n");
}
