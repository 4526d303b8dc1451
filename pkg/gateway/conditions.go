package gateway

import (
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// conditions collects those of one status. Setting one again replaces it.
type conditions struct {
	list       []metav1.Condition
	generation int64
}

func (c *conditions) set(kind string, ok bool, reason, message string) {
	status := metav1.ConditionFalse
	if ok {
		status = metav1.ConditionTrue
	}
	one := metav1.Condition{Type: kind, Status: status, Reason: reason, Message: message, ObservedGeneration: c.generation}
	for i := range c.list {
		if c.list[i].Type == kind {
			c.list[i] = one
			return
		}
	}
	c.list = append(c.list, one)
}

// unless sets a condition that is not yet set.
func (c *conditions) unless(kind string, ok bool, reason, message string) {
	if c.find(kind) == nil {
		c.set(kind, ok, reason, message)
	}
}

func (c *conditions) find(kind string) *metav1.Condition {
	i := slices.IndexFunc(c.list, func(x metav1.Condition) bool { return x.Type == kind })
	if i < 0 {
		return nil
	}
	return &c.list[i]
}

func (c *conditions) isTrue(kind string) bool {
	x := c.find(kind)
	return x != nil && x.Status == metav1.ConditionTrue
}

// since gives the conditions with the times of their last change: those of before where the status stayed, now elsewhere.
// Conditions of other types that were there stay.
func (c *conditions) since(before []metav1.Condition, now time.Time) []metav1.Condition {
	out := slices.Clone(c.list)
	for i := range out {
		out[i].LastTransitionTime = metav1.NewTime(now.Truncate(time.Second))
		for _, b := range before {
			if b.Type == out[i].Type && b.Status == out[i].Status {
				out[i].LastTransitionTime = b.LastTransitionTime
			}
		}
	}
	return out
}

// Shorthands of conditions and reasons.
const (
	accepted     = string(gatewayv1.GatewayConditionAccepted)
	programmed   = string(gatewayv1.GatewayConditionProgrammed)
	resolvedRefs = string(gatewayv1.ListenerConditionResolvedRefs)
	conflicted   = string(gatewayv1.ListenerConditionConflicted)
)
