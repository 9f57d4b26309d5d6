//! Configuration space of a device that nobody trusts, from few fuzzer bytes.
//!
//! Real spaces have 256 or 4096 bytes, most of them zero; a fuzzer gets nowhere with inputs of that size. So the input
//! lists dwords and where they are.

/// Bytes of one listed dword: its offset, then its value.
const PATCH_LEN: usize = 6;

/// Length of an input that lists `dwords` dwords.
pub fn len(dwords: u8) -> usize {
    1 + usize::from(dwords) * PATCH_LEN
}

/// The space that `input` describes. Its first byte chooses the length; what follows are pairs of a 16-bit offset and a
/// dword, little-endian.
pub fn sparse(input: &[u8]) -> Vec<u8> {
    let Some((&choice, patches)) = input.split_first() else {
        return Vec::new();
    };
    let len = if choice & 1 == 0 { 256 } else { 4096 };
    let mut config = vec![0; len];
    for patch in patches.chunks_exact(PATCH_LEN) {
        let offset = usize::from(u16::from_le_bytes([patch[0], patch[1]]) & !3) % len;
        config[offset..offset + 4].copy_from_slice(&patch[2..]);
    }
    config
}
