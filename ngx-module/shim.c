#include "wrapper.h"

const char hb_signature[] = NGX_MODULE_SIGNATURE;
const ngx_uint_t hb_http_module = NGX_HTTP_MODULE;

void
hb_post_event(ngx_event_t *event)
{
    ngx_post_event(event, &ngx_posted_events);
}

/* In the next turn of the loop. */
void
hb_post_next_event(ngx_event_t *event)
{
#if (nginx_version >= 1017005)
    ngx_post_event(event, &ngx_posted_next_events);
#else
    ngx_post_event(event, &ngx_posted_events);
#endif
}

void
hb_delete_posted_event(ngx_event_t *event)
{
    if (event->posted) {
        ngx_delete_posted_event(event);
    }
}

void
hb_add_timer(ngx_event_t *event, ngx_msec_t time)
{
    ngx_add_timer(event, time);
}

void
hb_del_timer(ngx_event_t *event)
{
    if (event->timer_set) {
        ngx_del_timer(event);
    }
}

ngx_int_t
hb_add_read_event(ngx_connection_t *c)
{
    ngx_uint_t flags = (ngx_event_flags & NGX_USE_CLEAR_EVENT) ? NGX_CLEAR_EVENT : NGX_LEVEL_EVENT;

    return ngx_add_event(c->read, NGX_READ_EVENT, flags);
}

/* Room in the socket is not asked for all the time: each read of the other side would wake this one. */
ngx_int_t
hb_await_room(ngx_connection_t *c)
{
    c->write->ready = 0;

    return ngx_handle_write_event(c->write, 0);
}

ngx_int_t
hb_has_room(ngx_connection_t *c)
{
    return c->write->active ? ngx_del_event(c->write, NGX_WRITE_EVENT, 0) : NGX_OK;
}

ngx_uint_t
hb_is_ssl(ngx_http_request_t *r)
{
#if (NGX_SSL)
    return r->connection->ssl != NULL;
#else
    return 0;
#endif
}

ngx_uint_t
hb_is_http2(ngx_http_request_t *r)
{
#if (NGX_HTTP_V2)
    return r->stream != NULL;
#else
    return 0;
#endif
}

off_t
hb_buf_size(const ngx_buf_t *b)
{
    return ngx_buf_size(b);
}

/* An array of headers until 1.23, a list since. */
void
hb_add_cache_control(ngx_http_request_t *r, ngx_table_elt_t *h)
{
#if (nginx_version >= 1023000)
    ngx_table_elt_t **last = &r->headers_out.cache_control;

    while (*last) {
        last = &(*last)->next;
    }

    *last = h;
#else
    ngx_table_elt_t **slot;

    if (r->headers_out.cache_control.elts == NULL
        && ngx_array_init(&r->headers_out.cache_control, r->pool, 1, sizeof(ngx_table_elt_t *)) != NGX_OK)
    {
        return;
    }

    slot = ngx_array_push(&r->headers_out.cache_control);
    if (slot) {
        *slot = h;
    }
#endif
}

void
hb_set_www_authenticate(ngx_http_request_t *r, ngx_table_elt_t *h)
{
    r->headers_out.www_authenticate = h;
}

/* Absent in an nginx built without it. */
extern ngx_module_t ngx_http_auth_basic_module __attribute__((weak));

void *
hb_auth_basic_conf(ngx_http_request_t *r)
{
    if (&ngx_http_auth_basic_module == NULL) {
        return NULL;
    }

    return ngx_http_get_module_loc_conf(r, ngx_http_auth_basic_module);
}
