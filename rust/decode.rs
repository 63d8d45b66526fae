//! From a token's spelling in the vocabulary file to the bytes that it adds to the text.

#![forbid(unsafe_code)]

use crate::error::Error;
use crate::vocabulary::{Kind, MAX_TOKEN_BYTES};

/// One step of a tokenizer's decoder, as far as it changes the bytes of a single token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
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

/// The bytes of one token, and its kind once the decoder has had its say.
///
/// A user-defined token is its own content, with `▁` and the space before a word read as the decoder
/// reads them; only normal tokens go through the byte-level table and the byte fallback.
pub fn decode(id: usize, spelling: &str, kind: Kind, steps: &[Step]) -> Result<(Vec<u8>, Kind), Error> {
    let mut text = spelling.to_owned();
    for step in steps {
        match step {
            Step::Replace { from, to } => text = replace(id, &text, from, to)?,
            Step::ByteLevel if kind == Kind::Normal => {
                if let Some(bytes) = text.chars().map(byte_of).collect() {
                    return Ok((bytes, kind));
                }
            }
            Step::ByteFallback if matches!(kind, Kind::Normal | Kind::Byte) => {
                if let Some(byte) = fallback_byte(&text) {
                    return Ok((vec![byte], Kind::Byte));
                }
            }
            Step::ByteLevel | Step::ByteFallback => {}
            Step::Word { prefix } => text = word(&text, prefix),
        }
    }
    if kind == Kind::Byte {
        return Err(Error::NotAByte { id, spelling: spelling.to_owned() });
    }
    Ok((text.into_bytes(), kind))
}

/// Refused before memory is asked for: a chain of a few replacements can ask for more than there is.
fn replace(id: usize, text: &str, from: &str, to: &str) -> Result<String, Error> {
    let count = text.matches(from).count();
    let length = (text.len() - count * from.len()).saturating_add(count.saturating_mul(to.len()));
    if length > MAX_TOKEN_BYTES && to.len() > from.len() {
        return Err(Error::TokenTooLong { id, length, limit: MAX_TOKEN_BYTES });
    }
    Ok(text.replace(from, to))
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
