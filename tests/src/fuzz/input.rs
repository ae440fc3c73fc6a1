//! Typed pieces of a fuzzer's bytes. When the bytes run out everything is zero or empty, so that
//! every input means something and short ones mean something simple.

/// Reads pieces from the front.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// So many bytes, or what is left.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        self.bytes(usize::MAX)
    }

    /// A number of so many bytes.
    fn number(&mut self, bytes: usize) -> u64 {
        self.bytes(bytes)
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// One byte.
    pub fn u8(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or_default()
    }

    /// Two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::try_from(self.number(2)).unwrap_or_default()
    }

    /// Four bytes.
    pub fn u32(&mut self) -> u32 {
        u32::try_from(self.number(4)).unwrap_or_default()
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> u64 {
        self.number(8)
    }

    /// A number below a limit, which must be at most 65,536.
    pub fn below(&mut self, limit: usize) -> usize {
        let number = if limit <= 256 {
            usize::from(self.u8())
        } else {
            usize::from(self.u16())
        };
        number % limit.max(1)
    }

    /// One of these.
    pub fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Bytes with their length before them.
    pub fn piece(&mut self) -> &'a [u8] {
        let length = usize::from(self.u8());
        self.bytes(length)
    }

    /// Text; bytes that are none become replacement characters.
    pub fn text(&mut self) -> String {
        String::from_utf8_lossy(self.piece()).into_owned()
    }
}
