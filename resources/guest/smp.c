/* Starts the CPUs that the MADT lists by INIT and SIPI. Each checks that CPUID names the APIC ID it runs on and
 * counts; those of `smp-work` count for ever, for tests that stop and wake a busy machine. */
#include "guest.h"

enum { AP_PAGE = 0x8000, MAX_APS = 256, INIT = 0x4500, SIPI = 0x4600 };

extern u8 ap_start[], ap_start_end[];
extern volatile u32 ap_tickets;
static volatile u64 work[MAX_APS];
static volatile u32 ids_seen[MAX_APS], ready, wrong_ids;
static int keep_working;

void ap_main(u32 ticket)
{
    u32 r[4], leaf_b[4];
    load_idt();
    apic_enable();
    cpuid(0, 0, r);
    u32 leaves = r[0];
    cpuid(1, 0, r);
    cpuid(0xb, 0, leaf_b);
    u32 id = apic_id();
    if (r[1] >> 24 != (id & 0xff) || (leaves >= 0xb && leaf_b[1] && leaf_b[3] != id))
        __atomic_fetch_add(&wrong_ids, 1, __ATOMIC_SEQ_CST);
    ids_seen[ticket] = id;
    work[ticket] = 1;
    __atomic_fetch_add(&ready, 1, __ATOMIC_SEQ_CST);
    while (keep_working) {
        work[ticket]++;
        for (int i = 0; i < 100; i++)
            cpu_relax();
    }
}

u64 ap_work(void)
{
    u64 sum = 0;
    for (u32 i = 0; i < ready; i++)
        sum += work[i];
    return sum;
}

static int is_duplicate(u32 ticket)
{
    for (u32 i = 0; i < ticket; i++)
        if (ids_seen[i] == ids_seen[ticket])
            return 1;
    return ids_seen[ticket] == apic_id();
}

/* Returns how many CPUs run, this one included. */
u32 start_cpus(int working)
{
    interrupts_init();
    if (ready || !acpi_walk() || cpu_count > MAX_APS)
        return ready + 1;
    keep_working = working;
    memcpy(at(AP_PAGE), ap_start, (u64)(ap_start_end - ap_start));
    u32 own = apic_id(), wanted = 0;
    for (u32 i = 0; i < cpu_count; i++) {
        if (cpu_apic_ids[i] == own)
            continue;
        wanted++;
        apic_send(cpu_apic_ids[i], INIT);
    }
    delay_us(200);
    for (int attempt = 0; attempt < 2; attempt++) {
        for (u32 i = 0; i < cpu_count; i++)
            if (cpu_apic_ids[i] != own)
                apic_send(cpu_apic_ids[i], SIPI | AP_PAGE >> 12);
        for (int i = 0; i < 100 && ready < wanted; i++)
            delay_us(100);
    }
    for (int i = 0; i < 20000 && ready < wanted; i++)
        delay_us(1000);
    return ready + 1;
}

void cmd_smp(void)
{
    u32 cpus = start_cpus(0), duplicates = 0;
    for (u32 i = 0; i < ready; i++)
        duplicates += (u32)is_duplicate(i);
    print("smp cpus=%d of=%d wrong-ids=%d duplicates=%d\n", (u64)cpus, (u64)cpu_count, (u64)wrong_ids, (u64)duplicates);
}
