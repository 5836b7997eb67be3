//! [`Timestamp`] as `timestamptz`, exact.
//!
//! On the wire a `timestamptz` is the microseconds since 2000-01-01T00:00:00Z, so neither a date library nor SQL
//! arithmetic in floating point stands between the two.

use paceline_core::Timestamp;
use sqlx::{
    Decode, Encode, Postgres, Type,
    encode::IsNull,
    error::BoxDynError,
    postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueFormat, PgValueRef, types::Oid},
};

/// 1970-01-01 to 2000-01-01.
const EPOCH_GAP_US: i64 = 946_684_800_000_000;

/// The object ids PostgreSQL gives its built-in types, the same in every installation.
const TIMESTAMPTZ: PgTypeInfo = PgTypeInfo::with_oid(Oid(1184));
const TIMESTAMPTZ_ARRAY: PgTypeInfo = PgTypeInfo::with_oid(Oid(1185));

#[derive(Debug, Clone, Copy)]
pub(super) struct Tz(pub(super) Timestamp);

impl Type<Postgres> for Tz {
    fn type_info() -> PgTypeInfo {
        TIMESTAMPTZ
    }
}

impl PgHasArrayType for Tz {
    fn array_type_info() -> PgTypeInfo {
        TIMESTAMPTZ_ARRAY
    }
}

impl Encode<'_, Postgres> for Tz {
    fn encode_by_ref(&self, buf: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        <i64 as Encode<'_, Postgres>>::encode(self.0.as_micros() - EPOCH_GAP_US, buf)
    }

    fn size_hint(&self) -> usize {
        size_of::<i64>()
    }
}

impl Decode<'_, Postgres> for Tz {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        match value.format() {
            PgValueFormat::Binary => {
                let micros = <i64 as Decode<'_, Postgres>>::decode(value)?;
                Ok(Tz(Timestamp::from_micros(micros.saturating_add(EPOCH_GAP_US))))
            }
            PgValueFormat::Text => Err("a time in text form is not expected: queries here are prepared".into()),
        }
    }
}
