//! What a VMM itself takes: the proportional set size of all its mappings but the guest's RAM.
//!
//! `Documentation/filesystems/proc.rst` in the kernel tree describes `smaps`.

/// KiB of PSS in an `smaps` text, without mappings of at least `ram_kib` (the guest's RAM).
pub fn beyond_ram_kib(smaps: &str, ram_kib: u64) -> u64 {
    let mut size = 0;
    let mut sum = 0;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (Some(key), Some(value)) = (words.next(), words.next()) else {
            continue;
        };
        let number = || value.parse::<u64>().unwrap_or(0);
        match key {
            "Size:" => size = number(),
            "Pss:" if size < ram_kib => sum += number(),
            _ => {}
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_left_out() {
        let smaps = "55d0-55d1 r-xp 0 08:01 1 /bin/vmm\nSize:  16 kB\nPss:  12 kB\nPss_Dirty: 4 kB\n\
                     7f00-7f20 rw-s 0 00:01 2 /memfd:ram\nSize:  524288 kB\nPss:  9000 kB\n";
        assert_eq!(beyond_ram_kib(smaps, 524_288), 12);
    }
}
