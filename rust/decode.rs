//! From a token's spelling in the vocabulary file to the bytes that it adds to the text.

#![forbid(unsafe_code)]

use crate::error::Error;
use crate::vocabulary::{Kind, MAX_TOKEN_BYTES};

/// One step of a tokenizer's decoder, as far as it changes the bytes of a single token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecoderStep {
    /// Every character stands for one byte (GPT-2's table); a token with another character is UTF-8.
    ByteLevel,
    /// One string becomes another, as `▁` becomes a space.
    Replace {
        /// What is looked for.
        from: String,
        /// What stands there instead.
        to: String,
    },
    /// `<0xHH>` is one byte.
    ByteFallback,
    /// A token is a word and has a space before it, or goes on with one and says so by a prefix.
    Word {
        /// What a token that goes on with a word begins with (`##`); empty where none does.
        prefix: String,
    },
}

/// What a token adds to the text, and its kind once the decoder has had its say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Its bytes; none if it is opaque.
    pub bytes: Vec<u8>,
    /// As given, but for a byte that a normal token spells, and one that cannot be read alone.
    pub kind: Kind,
}

impl AsRef<[u8]> for Decoded {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The bytes and the kind of one token.
///
/// A user-defined token is its own content, with `▁` and the space before a word read as the decoder
/// reads them; only normal tokens go through the byte-level table and the byte fallback.
pub fn decode(id: usize, spelling: &str, kind: Kind, steps: &[DecoderStep]) -> Result<Decoded, Error> {
    let bound = Bound::of(id, spelling);
    let mut text = spelling.to_owned();
    for (place, step) in steps.iter().enumerate() {
        let behind = &steps[place + 1..];
        match step {
            DecoderStep::Replace { from, to } => text = bound.replace(&text, from, to, 0)?,
            DecoderStep::ByteLevel if kind == Kind::Normal => {
                if let Some(bytes) = text.chars().map(byte_of).collect() {
                    return bound.replace_behind(Decoded { bytes, kind }, behind);
                }
            }
            DecoderStep::ByteFallback if matches!(kind, Kind::Normal | Kind::Byte) => {
                if let Some(byte) = fallback_byte(&text) {
                    return bound.replace_behind(Decoded { bytes: vec![byte], kind: Kind::Byte }, behind);
                }
            }
            DecoderStep::ByteLevel | DecoderStep::ByteFallback => {}
            DecoderStep::Word { prefix } => text = word(&text, prefix),
        }
    }
    if kind == Kind::Byte {
        return Err(Error::NotAByte { id, spelling: spelling.to_owned() });
    }
    Ok(Decoded { bytes: text.into_bytes(), kind })
}

/// The most bytes that a decoder may make of a token: real ones hardly lengthen any, and one that does could
/// make gigabytes of a small file.
struct Bound {
    id: usize,
    most: usize,
}

impl Bound {
    fn of(id: usize, spelling: &str) -> Self {
        Self { id, most: spelling.len().saturating_mul(4).saturating_add(64).min(MAX_TOKEN_BYTES) }
    }

    /// The text with one string in place of the other; `made` bytes of the token stand before it.
    ///
    /// Refused before memory is asked for: a chain of a few replacements can ask for more than there is.
    fn replace(&self, text: &str, from: &str, to: &str, made: usize) -> Result<String, Error> {
        let count = text.matches(from).count();
        let kept = made + text.len() - count * from.len();
        let length = kept.saturating_add(count.saturating_mul(to.len()));
        if length > self.most && to.len() > from.len() {
            return Err(Error::DecodedTooLong { id: self.id, length, limit: self.most });
        }
        Ok(text.replace(from, to))
    }

    /// What the replacements behind the step that made bytes make of them.
    ///
    /// They see neighbouring bytes as text. So the second byte of what is looked for says nothing alone: it is
    /// opaque, and a character that stands in several tokens is never read wrongly.
    fn replace_behind(&self, token: Decoded, steps: &[DecoderStep]) -> Result<Decoded, Error> {
        let Decoded { mut bytes, kind } = token;
        for step in steps {
            let DecoderStep::Replace { from, to } = step else { continue };
            if bytes.len() == 1 && bytes.first() == from.as_bytes().get(1) {
                return Ok(Decoded { bytes: Vec::new(), kind: Kind::Opaque });
            }
            if !from.is_empty() {
                bytes = self.replace_in_bytes(&bytes, from, to)?;
            }
        }
        Ok(Decoded { bytes, kind })
    }

    fn replace_in_bytes(&self, bytes: &[u8], from: &str, to: &str) -> Result<Vec<u8>, Error> {
        let mut made = Vec::with_capacity(bytes.len());
        for chunk in bytes.utf8_chunks() {
            made.extend_from_slice(self.replace(chunk.valid(), from, to, made.len())?.as_bytes());
            made.extend_from_slice(chunk.invalid());
        }
        Ok(made)
    }
}

/// The byte that a character of GPT-2's byte-level alphabet stands for.
///
/// Printable Latin-1 characters stand for themselves; the 68 other bytes, in order, are the
/// characters from U+0100 on.
#[must_use]
pub fn byte_of(character: char) -> Option<u8> {
    let code = u32::from(character);
    match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => u8::try_from(code).ok(),
        0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7F).ok(),
        0x143 => Some(0xAD),
        _ => None,
    }
}

fn word(text: &str, prefix: &str) -> String {
    match text.strip_prefix(prefix) {
        Some(rest) if !prefix.is_empty() => rest.to_owned(),
        _ => format!(" {text}"),
    }
}

fn fallback_byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let hexadecimal = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    hexadecimal.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}
