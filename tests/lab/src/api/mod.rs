//! What the services share: errors, parameters, answers, pages, filters.

pub mod error;
pub mod filter;
pub mod page;
pub mod params;
pub mod xml;

pub use error::{ApiError, ApiResult};
pub use filter::Filters;
pub use page::page;
pub use params::Params;
