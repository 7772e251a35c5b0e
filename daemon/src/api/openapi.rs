//! The OpenAPI document of the API.
//!
//! Each handler says in a `utoipa::path` above it what it serves. [`served!`] makes both the router and the document of
//! one list of handlers, so neither can have what the other lacks.
//!
//! The document is built in tests only, which hold the committed `daemon/openapi.json` to it; the daemon serves that
//! file. So it builds nothing at its start and carries nothing of the builder: of what the annotations become, only path
//! and method are used outside of tests.

use axum::Router;
use axum::handler::Handler;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};
use utoipa::openapi::HttpMethod;

use crate::app::App;

const DOCUMENT: &str = include_str!("../../openapi.json");

/// Shows the OpenAPI document of this API.
#[utoipa::path(get, path = "/1.0/openapi.json", responses(
    (status = 200, description = "The document, without the envelope.", body = serde_json::Value)
))]
pub(super) async fn get() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT).into_response()
}

/// Routes the methods and the path `P` to a handler.
pub(super) fn route<P, H, T>(router: Router<App>, handler: &H) -> Router<App>
where
    P: utoipa::Path,
    H: Handler<T, App>,
    T: 'static,
{
    P::methods().into_iter().fold(router, |router, method| {
        let method = match method {
            HttpMethod::Get => MethodFilter::GET,
            HttpMethod::Post => MethodFilter::POST,
            HttpMethod::Put => MethodFilter::PUT,
            HttpMethod::Delete => MethodFilter::DELETE,
            HttpMethod::Options => MethodFilter::OPTIONS,
            HttpMethod::Head => MethodFilter::HEAD,
            HttpMethod::Patch => MethodFilter::PATCH,
            HttpMethod::Trace => MethodFilter::TRACE,
        };
        router.route(&P::path(), on(method, handler.clone()))
    })
}

/// Makes `routes()`, and for tests the document's beginning, of the handlers that are served.
macro_rules! served {
    ($($file:ident::$handler:ident,)+) => {
        pastey::paste! {
            /// Every route.
            fn routes() -> axum::Router<App> {
                let router = axum::Router::new();
                $(let router = openapi::route::<$file::[<__path_ $handler>], _, _>(router, &$file::$handler);)+
                router
            }

            /// What the handlers say of themselves.
            #[cfg(test)]
            #[derive(utoipa::OpenApi)]
            #[openapi(paths($($file::$handler),+))]
            pub(super) struct Annotations;
        }
    };
}
pub(super) use served;

#[cfg(test)]
mod document;
#[cfg(test)]
mod tests;
