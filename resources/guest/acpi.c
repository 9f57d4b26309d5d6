/* Walks RSDP, XSDT and the tables behind it (ACPI 6.5, chapter 5), checks every checksum, and collects the
 * CPUs of the MADT and the ECAM base of the MCFG. Lengths are bounded, since a broken table must end in a
 * message and not in a fault. */
#include "guest.h"

struct PACKED header { char signature[4]; u32 length; u8 revision, checksum; char oem[6], table[8]; u32 oem_revision, creator[2]; };

u32 cpu_apic_ids[MAX_CPUS], cpu_count;
u64 ecam_base;
static u32 tables_seen, dsdt_length, fadt_flags, disabled_cpus, ioapics;
static u64 sleep_control, reset_register;

static int sum_is_zero(const void *data, u32 length)
{
    u8 sum = 0;
    for (u32 i = 0; i < length; i++)
        sum = (u8)(sum + ((const u8 *)data)[i]);
    return sum == 0;
}

static int fail(const char *what)
{
    print("acpi: %s\n", what);
    return 0;
}

static const u8 *find_rsdp(void)
{
    if (boot_rsdp)
        return at(boot_rsdp);
    for (u64 a = 0xe0000; a < 0x100000; a += 16)
        if (!memcmp(at(a), "RSD PTR ", 8))
            return at(a);
    return 0;
}

static int is_sound(u64 address, const char *signature)
{
    const struct header *table = at(address);
    if (!address || address >= 1UL << 32)
        return fail("table address out of reach");
    if (signature && memcmp(table->signature, signature, 4))
        return fail("wrong signature");
    if (table->length < sizeof *table || table->length > 1 << 20)
        return fail("absurd table length");
    return sum_is_zero(table, table->length) || fail("checksum does not match");
}

static void add_cpu(u32 id, u32 flags)
{
    if (!(flags & 1))
        disabled_cpus++;
    else if (cpu_count < MAX_CPUS)
        cpu_apic_ids[cpu_count++] = id;
}

static void read_madt(const u8 *table, u32 length)
{
    cpu_count = disabled_cpus = ioapics = 0;
    for (u32 at = 44; at + 2 <= length && table[at + 1] >= 2; at += table[at + 1]) {
        const u8 *entry = table + at;
        if (entry[0] == 0)
            add_cpu(entry[3], *(const u32 *)(entry + 4));
        else if (entry[0] == 9)
            add_cpu(*(const u32 *)(entry + 4), *(const u32 *)(entry + 8));
        else if (entry[0] == 1)
            ioapics++;
    }
}

static int read_fadt(const u8 *table, u32 length)
{
    fadt_flags = *(const u32 *)(table + 112);
    reset_register = *(const u64 *)(table + 116 + 4);
    sleep_control = length >= 256 ? *(const u64 *)(table + 244 + 4) : 0;
    u64 address = length >= 148 ? *(const u64 *)(table + 140) : 0;
    address = address ? address : *(const u32 *)(table + 40);
    if (!is_sound(address, "DSDT"))
        return 0;
    dsdt_length = ((const struct header *)at(address))->length;
    return 1;
}

/* 1 when all tables are sound. */
int acpi_walk(void)
{
    const u8 *rsdp = find_rsdp();
    if (!rsdp)
        return fail("no RSDP");
    if (memcmp(rsdp, "RSD PTR ", 8) || !sum_is_zero(rsdp, 20) || rsdp[15] < 2 || !sum_is_zero(rsdp, 36))
        return fail("RSDP is damaged");
    u64 root = *(const u64 *)(rsdp + 24);
    if (!is_sound(root, "XSDT"))
        return 0;
    const struct header *xsdt = at(root);
    int ok = 1;
    tables_seen = 0;
    for (u32 offset = sizeof *xsdt; offset + 8 <= xsdt->length; offset += 8, tables_seen++) {
        u64 address = *(const u64 *)((const u8 *)xsdt + offset);
        const struct header *table = at(address);
        if (!is_sound(address, 0))
            ok = 0;
        else if (!memcmp(table->signature, "FACP", 4))
            ok &= read_fadt((const u8 *)table, table->length);
        else if (!memcmp(table->signature, "APIC", 4))
            read_madt((const u8 *)table, table->length);
        else if (!memcmp(table->signature, "MCFG", 4))
            ecam_base = *(const u64 *)((const u8 *)table + 44);
    }
    return ok && cpu_count && dsdt_length;
}

void cmd_acpi(void)
{
    int ok = acpi_walk();
    print("acpi=%s cpus=%d disabled=%d ioapics=%d tables=%d\n", ok ? "ok" : "bad", (u64)cpu_count, (u64)disabled_cpus,
          (u64)ioapics, (u64)tables_seen);
    print("acpi dsdt=%d hw-reduced=%d sleep=0x%x reset=0x%x ecam=0x%x\n", (u64)dsdt_length, (u64)(fadt_flags >> 20 & 1),
          sleep_control, reset_register, ecam_base);
}
