//! Arbitrary spellings, kinds and steps: never a panic, never more bytes than a token may have, and the same
//! as the steps said slowly.

#![no_main]

use arbitrary::Arbitrary;
use dskd::decode::{Decoded, DecoderStep, byte_of, decode};
use dskd::error::Error;
use dskd::vocabulary::{Kind, MAX_TOKEN_BYTES};
use libfuzzer_sys::fuzz_target;
use many::Many;

mod many;

#[derive(Arbitrary, Debug)]
struct Input {
    spelling: String,
    repeated: u8,
    kind: u8,
    steps: Many<GivenStep, 12>,
}

#[derive(Arbitrary, Debug)]
enum GivenStep {
    ByteLevel,
    Replace { from: String, to: String },
    ByteFallback,
    Word { prefix: String },
}

fuzz_target!(|input: Input| {
    let spelling = input.spelling.repeat(1 + usize::from(input.repeated));
    let kind = Kind::from_number(input.kind % 6).expect("six kinds");
    let steps: Vec<DecoderStep> = input.steps.0.into_iter().map(step).collect();
    let most = (4 * spelling.len() + 64).min(MAX_TOKEN_BYTES);
    match decode(7, &spelling, kind, &steps) {
        Ok(found) => {
            assert!(found.bytes.len() <= spelling.len().max(most) + steps.len());
            match found.kind {
                Kind::Byte | Kind::Opaque => assert!(found.kind == kind || kind <= Kind::Byte, "{found:?}"),
                same => assert_eq!(same, kind),
            }
            assert_eq!(Some(found), slowly(&spelling, kind, &steps));
        }
        Err(Error::NotAByte { id, spelling: said }) => {
            assert!(id == 7 && said == spelling && kind == Kind::Byte);
            assert_eq!(slowly(&spelling, kind, &steps), None);
        }
        Err(Error::DecodedTooLong { id, length, limit }) => {
            assert!(id == 7 && length > limit && limit == most);
        }
        Err(error) => panic!("{error}"),
    }
});

fn step(given: GivenStep) -> DecoderStep {
    match given {
        GivenStep::ByteLevel => DecoderStep::ByteLevel,
        GivenStep::Replace { from, to } => DecoderStep::Replace { from, to },
        GivenStep::ByteFallback => DecoderStep::ByteFallback,
        GivenStep::Word { prefix } => DecoderStep::Word { prefix },
    }
}

/// None where a token of kind byte is none.
fn slowly(spelling: &str, kind: Kind, steps: &[DecoderStep]) -> Option<Decoded> {
    let mut text = spelling.to_owned();
    for (place, step) in steps.iter().enumerate() {
        let behind = &steps[place + 1..];
        text = match step {
            DecoderStep::ByteLevel if kind == Kind::Normal && text.chars().all(|one| byte(one).is_some()) => {
                return Some(replaced(text.chars().filter_map(byte).collect(), kind, behind));
            }
            DecoderStep::ByteFallback if kind == Kind::Normal || kind == Kind::Byte => {
                let spelt = |byte: &u8| {
                    text == format!("<0x{byte:02X}>")
                        || text == format!("<0x{byte:02x}>")
                        || text.len() == 6
                            && text.to_uppercase() == format!("<0X{byte:02X}>")
                            && text.starts_with("<0x")
                };
                if let Some(byte) = (0..=255).find(spelt) {
                    return Some(replaced(vec![byte], Kind::Byte, behind));
                }
                text
            }
            DecoderStep::ByteLevel | DecoderStep::ByteFallback => text,
            DecoderStep::Replace { from, to } => text.split(from.as_str()).collect::<Vec<_>>().join(to),
            DecoderStep::Word { prefix } if !prefix.is_empty() && text.starts_with(prefix) => {
                text[prefix.len()..].to_owned()
            }
            DecoderStep::Word { .. } => [" ", &text].concat(),
        };
    }
    (kind != Kind::Byte).then(|| Decoded { bytes: text.into_bytes(), kind })
}

/// Byte by byte; the second byte of what is looked for says nothing alone.
fn replaced(mut bytes: Vec<u8>, kind: Kind, steps: &[DecoderStep]) -> Decoded {
    for step in steps {
        let DecoderStep::Replace { from, to } = step else { continue };
        let from = from.as_bytes();
        if from.len() > 1 && bytes == [from[1]] {
            return Decoded { bytes: Vec::new(), kind: Kind::Opaque };
        }
        let (mut made, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            let is_here = !from.is_empty() && bytes[at..].starts_with(from);
            made.extend_from_slice(if is_here { to.as_bytes() } else { &bytes[at..=at] });
            at += if is_here { from.len() } else { 1 };
        }
        bytes = made;
    }
    Decoded { bytes, kind }
}

/// GPT-2's table as it was published: printable bytes are themselves, the others follow from U+0100 on.
fn byte(character: char) -> Option<u8> {
    let printable = |byte: &u8| matches!(*byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let found = if u32::from(character) < 0x100 {
        u8::try_from(u32::from(character)).ok().filter(printable)
    } else {
        let number = usize::try_from(u32::from(character) - 0x100).expect("small");
        (0..=255).filter(|byte| !printable(byte)).nth(number)
    };
    assert_eq!(found, byte_of(character));
    found
}
